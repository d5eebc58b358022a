// A class activation map over an image: each position's evidence for or against a class.

const CELL = 40; // pixels drawn for each cell of the grid
const LARGEST = 320;
const FOR = [[255, 214, 92], [255, 138, 36], [206, 24, 40]]; // from weak to strong
const AGAINST = [[126, 200, 255], [58, 128, 236], [28, 52, 160]];
const FADE = 0.75; // below 1, weak values are more visible
const ROWS = ["top", "middle", "bottom"];
const COLUMNS = ["left", "centre", "right"];

/** Catmull-Rom weights of four neighbours, at a fraction of the way between the inner two. */
function weights(share) {
  const square = share * share;
  const cube = square * share;
  return [
    (-cube + 2 * square - share) / 2,
    (3 * cube - 5 * square + 2) / 2,
    (-3 * cube + 4 * square + share) / 2,
    (cube - square) / 2,
  ];
}

/** For each of `length` positions: its neighbouring cells and their weights. */
function stencil(length, cells) {
  return Array.from({ length }, (_, place) => {
    const position = ((place + 0.5) * cells) / length - 0.5;
    const before = Math.floor(position);
    const indices = [-1, 0, 1, 2].map((step) => Math.min(cells - 1, Math.max(0, before + step)));
    return [indices, weights(position - before)];
  });
}

function blended(colours, share) {
  const place = share * (colours.length - 1);
  const first = Math.min(colours.length - 2, Math.floor(place));
  return colours[first].map((from, i) => from + (place - first) * (colours[first + 1][i] - from));
}

/** RGBA of a value from -1 (against the class) to 1 (for it). */
function colour(value) {
  const share = Math.min(1, Math.abs(value));
  return [...blended(value < 0 ? AGAINST : FOR, share), 255 * share ** FADE];
}

function paint(canvas, width, height, valueAt) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) image.data.set(colour(valueAt(x, y)), 4 * (y * width + x));
  }
  context.putImageData(image, 0, 0);
}

const strongest = (grid) => Math.max(...grid.flat().map(Math.abs)) || 1;

/** Draws the grid of a response of /v1/explain over its region of the image. */
export function draw(canvas, { grid, region }) {
  const [rows, columns] = [grid.length, grid[0].length];
  const [height, width] = [rows, columns].map((cells) => Math.min(LARGEST, CELL * cells));
  const [down, across] = [stencil(height, rows), stencil(width, columns)];
  const limit = strongest(grid);
  paint(canvas, width, height, (x, y) => {
    const [[lines, vertical], [places, horizontal]] = [down[y], across[x]];
    let sum = 0;
    for (let i = 0; i < 4; i += 1) {
      for (let j = 0; j < 4; j += 1) sum += vertical[i] * horizontal[j] * grid[lines[i]][places[j]];
    }
    return sum / limit;
  });
  for (const side of ["left", "top", "width", "height"]) {
    canvas.style[side] = `${100 * region[side]}%`;
  }
}

/** Draws the colour scale of a map. */
export function drawRamp(canvas) {
  paint(canvas, 128, 1, (x) => (2 * x) / 127 - 1);
}

const signed = (text) => text.replace("-", "−");

/** Describes the map in words. */
export function describe({ label, grid, region, logit, bias }) {
  const values = grid.flat();
  const best = values.indexOf(Math.max(...values));
  // Of the image, beyond which a letterboxed region goes.
  const third = (place, cells, start, length) => {
    const share = start + (length * (place + 0.5)) / cells;
    return Math.min(2, Math.max(0, Math.floor(3 * share)));
  };
  const [line, across] = [Math.floor(best / grid[0].length), best % grid[0].length];
  const row = ROWS[third(line, grid.length, region.top, region.height)];
  const column = COLUMNS[third(across, grid[0].length, region.left, region.width)];
  const [mean, added, total] = [logit - bias, bias, logit].map((value) => signed(value.toFixed(2)));
  const place = row === "middle" && column === "centre" ? "in the middle" : `at the ${row} ${column}`;
  return `The strongest evidence for ${label} is ${place}. `
    + `The map's mean ${mean} plus the bias ${added} gives the logit ${total}.`;
}

/** The labels at the ends of the scale. */
export function limits({ grid }) {
  const limit = strongest(grid).toPrecision(3);
  return [`−${limit} against`, `for +${limit}`];
}
