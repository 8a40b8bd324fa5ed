// Talking to the server that shows this page: JSON out, JSON in, errors as one sentence.

import { jsonText } from "./neuronpedia_out.js";

/** `status`: the answer's, or 0 where the server gave none. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The JSON of the answer. Throws Refused: the server is gone, says why not, or `signal` ended it. */
export async function request(method, address, body = undefined, headers = {}, signal = null) {
  const options = { method, headers: { ...headers }, credentials: "same-origin", cache: "no-store", signal };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = jsonText(body);
  }
  let answer;
  let found;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Refused("the server does not answer: see whether it still runs, then try again.", 0);
  }
  try {
    found = await answer.json();
  } catch { // cut off, or not from our server
    throw new Refused(`the server's answer (${answer.status}) cannot be read: try again.`, answer.status || 0);
  }
  if (answer.ok) return found;
  const detail = typeof found?.detail === "string" ? found.detail : `the server answered ${answer.status}`;
  throw new Refused(/[.!?]$/.test(detail) ? detail : `${detail}.`, answer.status);
}
