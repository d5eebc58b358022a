// In words for people: what went wrong, and what the service calls by short names.
// The service's own text is for those who write clients.

const OTHER = "Try another image, for example a JPEG or PNG.";
const BUSY = "The service is busy.";
const MANY = "More images arrived than it can compute at once.";

/** By the reason in a problem's type: what happened, what to do, and whether the same may work later. */
export const WORDS = {
  // Of the image.
  undecodable_image: ["This file cannot be read as an image.", `It is damaged, incomplete, or no image at all. ${OTHER}`],
  unsupported_media_type: ["This file is not an image.", OTHER],
  unsupported_encoding: ["This file is not an image.", OTHER],
  too_large: ["This image is too large.", "Make it smaller, or choose another one."],
  unreadable_file: ["This file cannot be opened.", "It may be a folder, or was moved. Choose the images themselves."],
  // Of the model.
  unknown_model: ["This model is no longer served.", "Choose another model."],
  no_classes: ["This model has no classes.", "It turns images into embeddings; “API request” shows how to get them."],
  bad_parameter: ["The model cannot do this.", "Choose another model or another number of classes."],
  // Of the moment.
  queue_full: [BUSY, MANY, true],
  deadline_too_short: [BUSY, MANY, true],
  uploads_full: [BUSY, MANY, true],
  too_many_connections: [BUSY, MANY, true],
  not_ready: ["The service is not ready.", "It is loading the model, or about to stop.", true],
  engine_failed: ["The model failed.", "The service starts it again. If this image fails once more, try another one.", true],
  deadline_exceeded: ["This took too long.", "The service is busy. Try again in a moment.", true],
  client_deadline: ["This took too long.", "Try again; on a slow connection, send a smaller image.", true],
  request_too_slow: ["The upload was too slow.", "Try again with a better connection or a smaller image.", true],
  internal_error: ["Something went wrong in the service.", "Try again. The technical details help whoever runs it.", true],
  // Of the way there.
  broken_off: ["The connection broke off.", "Try again. If it fails once more, the image may be too large.", true],
  unreachable: ["Your image was not sent.", "It is sent as soon as the service responds again.", true],
  gateway: ["The service cannot be reached.", "A proxy in front of it answers instead. Try again in a moment.", true],
};
const FALLBACK = ["The service refused this request.", "The technical details say why."];

const NAMES = { openvino: "OpenVINO", compile: "compiled", cuda: "GPU" };

/** Engines, precisions and devices as people write them: "CPU" for "cpu", "GPU 0" for "cuda:0". */
export const written = (text) => text
  .replace(/\bcuda:(\d+)/g, "GPU $1")
  .replace(/\b(openvino|compile|cuda)\b/g, (word) => NAMES[word])
  .replace(/\b(cpu|fp32|fp16|bf16|int8)\b/g, (word) => word.toUpperCase());

/** Whether the service had more to do than it can. */
export const isBusy = (reason) => WORDS[reason]?.[0] === BUSY;

/** What happened, what to do, and whether the same may work later. */
export function wordsFor(reason) {
  const [title, remedy, again = false] = WORDS[reason] ?? FALLBACK;
  return { title, remedy, again };
}
