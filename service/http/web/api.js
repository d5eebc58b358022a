import * as key from "./key.js";

export const UNREACHABLE = "The service is not responding.";
const TRIES = 10;

/** The error in a response of the service, or of a proxy in front of it. */
async function refusalOf(response) {
  const problem = await response.json().catch(() => ({}));
  return new Error(problem.detail ?? `${response.status} ${response.statusText}`);
}

/** Seconds to wait, or null if the response does not suggest a retry. */
function retryAfter(response) {
  const text = response.headers.get("Retry-After");
  if (text === null) return null;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : null;
}

/**
 * Requests a path of the API and returns its JSON.
 *
 * Waits for a key if one is required, and for `Retry-After` if `wait(why, seconds)` is given. Throws
 * an Error with a message for users, or the signal's reason.
 */
export async function ask(path, { wait = null, ...options } = {}) {
  for (let tries = 1; ; tries += 1) {
    const used = key.current();
    const headers = { ...options.headers, ...(used && { "X-API-Key": used }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Error(UNREACHABLE, { cause: error });
    }
    if (response.ok) return response.json();
    const refusal = await refusalOf(response);
    const seconds = retryAfter(response);
    if (response.status === 401) {
      // Another request may have obtained a new key meanwhile.
      if (key.current() === used) await key.entered(refusal.message);
    } else if (wait && seconds !== null && tries < TRIES) {
      await wait(refusal.message, seconds);
    } else {
      throw refusal;
    }
    options.signal?.throwIfAborted();
  }
}
