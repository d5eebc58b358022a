import { ask, Refused } from "./api.js";

export const typeOf = (file) => (file.type.startsWith("image/") ? file.type : "application/octet-stream");

/**
 * Posts a picture's file to a path and returns the response.
 *
 * While waiting to retry, `picture.wait` has the refusal, the seconds left, and functions to end the
 * wait; `changed(picture)` is called at each change. Throws `Refused`, or the signal's reason.
 */
export async function post(picture, path, signal, changed) {
  const { file } = picture;
  await file.slice(0, 1).arrayBuffer().catch((error) => {
    throw new Refused("unreadable_file", `${file.name}: ${error.message}`);
  });
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": typeOf(file) },
    body: file,
    signal,
    wait: (refusal, seconds) => waited(picture, refusal, seconds, signal, changed),
  });
}

function waited(picture, refusal, seconds, signal, changed) {
  return new Promise((resolve, reject) => {
    const until = performance.now() + 1000 * seconds;
    const end = (finish, reason) => {
      clearInterval(timer);
      signal.removeEventListener("abort", abort);
      picture.wait = null;
      finish(reason);
      changed(picture);
    };
    const abort = () => end(reject, signal.reason);
    const timer = setInterval(() => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) {
        end(resolve);
      } else if (left !== picture.wait.seconds) {
        picture.wait.seconds = left;
        changed(picture);
      }
    }, 100);
    signal.addEventListener("abort", abort);
    picture.wait = { refusal, seconds, now: () => end(resolve), stop: () => end(reject, refusal) };
    changed(picture);
  });
}
