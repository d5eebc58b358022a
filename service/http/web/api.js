import * as key from "./key.js";
import { wordsFor } from "./words.js";

const TRIES = 10;
const TYPE = "urn:resnet-serve:problem:";
const PROXIES = { 413: "too_large", 429: "queue_full" }; // what proxies refuse by themselves

/** Why there is no answer: a `reason` of words.js, and what the service itself says, if it does. */
export class Refused extends Error {
  constructor(reason, detail = "", options = {}) {
    super(wordsFor(reason).title, options);
    Object.assign(this, { reason, detail });
  }
}

/** The error in a response of the service, or of a proxy in front of it. */
async function refusalOf(response) {
  const problem = await response.json().catch(() => ({}));
  const status = `${response.status} ${response.statusText}`.trim();
  if (!problem.type?.startsWith(TYPE)) {
    return new Refused(response.status < 500 ? PROXIES[response.status] : "gateway", status);
  }
  const id = response.headers.get("X-Request-ID");
  return new Refused(problem.type.slice(TYPE.length), `${status}: ${problem.detail} (request ID ${id})`);
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
 * Waits for a key if one is required, and for `Retry-After` if `wait(refusal, seconds)` is given.
 * Throws `Refused`, or the signal's reason.
 */
export async function ask(path, { wait = null, ...options } = {}) {
  for (let tries = 1; ; tries += 1) {
    const used = key.current();
    const headers = { ...options.headers, ...(used && { "X-API-Key": used }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
      if (response.ok) return await response.json();
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Refused("unreachable", String(error), { cause: error });
    }
    const refusal = await refusalOf(response);
    const seconds = retryAfter(response);
    if (response.status === 401) {
      // Another request may have obtained a new key meanwhile.
      if (key.current() === used) await key.entered(used !== null);
    } else if (wait && seconds !== null && tries < TRIES) {
      await wait(refusal, seconds);
    } else {
      throw refusal;
    }
    options.signal?.throwIfAborted();
  }
}
