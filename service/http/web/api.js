import * as key from "./key.js";

export const UNANSWERED = "The service does not answer.";
const TRIES = 10;

/** What the service, or whatever is before it, says against a request. */
async function refusalOf(response) {
  const problem = await response.json().catch(() => ({}));
  return new Error(problem.detail ?? `${response.status} ${response.statusText}`);
}

/** Seconds to wait, or null where the answer does not say that another try may help. */
function retryAfter(response) {
  const text = response.headers.get("Retry-After");
  if (text === null) return null;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : null;
}

/**
 * The JSON that a path of the API answers with.
 *
 * Waits for a key where one is needed, and as long as `Retry-After` says where `wait(why, seconds)`
 * is given. Throws an Error whose message is for people, or the signal's reason.
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
      throw new Error(UNANSWERED, { cause: error });
    }
    if (response.ok) return response.json();
    const refusal = await refusalOf(response);
    const seconds = retryAfter(response);
    if (response.status === 401) {
      // Another request may have brought a new key meanwhile.
      if (key.current() === used) await key.entered(refusal.message);
    } else if (wait && seconds !== null && tries < TRIES) {
      await wait(refusal.message, seconds);
    } else {
      throw refusal;
    }
    options.signal?.throwIfAborted();
  }
}
