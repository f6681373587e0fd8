// The service over HTTP: the access key, problems as errors, and a server that is gone for a while.

const KEY = "dscl-key";

/** What the service said no to: its problem details (RFC 9457). */
export class ApiError extends Error {
  constructor({ status, code, title, detail, request_id: requestId, retryAfter = null }) {
    super(detail ?? title ?? `The server answered ${status}.`);
    this.status = status;
    this.code = code ?? "unknown";
    this.title = title ?? "";
    this.detail = this.message;
    this.requestId = requestId ?? "";
    this.retryAfter = retryAfter;
  }
}

/** The server could not be reached. */
export class ServerGone extends Error {
  constructor() {
    super("The server does not answer.");
    this.detail = "The server does not answer. It may be starting, or the network is down.";
  }
}

/** Whether an error only says that the caller no longer wants the answer. */
export function isAbort(error) {
  return error?.name === "AbortError";
}

/** The access key that is sent, or null. It is forgotten when the tab is closed. */
export function key() {
  return sessionStorage.getItem(KEY);
}

/** Send this key from now on; null sends none. */
export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  events.dispatchEvent(new Event("key"));
}

/**
 * "key": another key is sent; "gone" and "back": the server stopped and started to answer.
 */
export const events = new EventTarget();

let askForKey = async () => false;

/** Have `ask(error)` called when a key is missing or wrong; it resolves to whether to try again. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** Headers that every request has. */
export function authorization() {
  return key() ? { Authorization: `Bearer ${key()}` } : {};
}

export function getJson(path, { signal } = {}) {
  return request("GET", path, { signal });
}

export function postJson(path, body, { signal } = {}) {
  return request("POST", path, { signal, json: body });
}

/** Any method, with or without a JSON body; null where the answer has none. */
export function send(method, path, body, { signal } = {}) {
  return request(method, path, { signal, json: body });
}

/** A file of the service, such as a thumbnail. */
export async function getBlob(path, { signal } = {}) {
  const response = await reach(path, { headers: authorization(), signal });
  if (!response.ok) throw await problem(response);
  return response.blob();
}

/** Remove something also while the page is being left; nobody hears of the answer. */
export function deleteOnLeave(path) {
  fetch(path, { method: "DELETE", headers: authorization(), keepalive: true }).catch(() => {});
}

/**
 * Upload a form.
 *
 * @param {(part: number) => void} [options.onProgress] told the share 0 … 1 that is on its way.
 */
export async function postForm(path, form, { signal, onProgress } = {}) {
  return retried(() => (onProgress ? uploaded(path, form, signal, onProgress) : posted(path, form, signal)));
}

function request(method, path, { signal, json }) {
  return retried(async () => {
    const headers = authorization();
    if (json !== undefined && json !== null) headers["Content-Type"] = "application/json";
    const body = json === undefined || json === null ? undefined : JSON.stringify(json);
    return answer(await reach(path, { method, headers, body, signal }));
  });
}

async function posted(path, form, signal) {
  return answer(await reach(path, { method: "POST", headers: authorization(), body: form, signal }));
}

// fetch does not tell how far an upload is.
function uploaded(path, form, signal, onProgress) {
  return new Promise((resolve, reject) => {
    const upload = new XMLHttpRequest();
    const stop = () => upload.abort();
    upload.open("POST", path);
    for (const [name, value] of Object.entries(authorization())) upload.setRequestHeader(name, value);
    upload.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    });
    upload.addEventListener("load", () => {
      back();
      const headers = { "Retry-After": upload.getResponseHeader("Retry-After") ?? "" };
      resolve(answer(new Response(upload.response || null, { status: upload.status, headers })));
    });
    upload.addEventListener("error", () => reject(gone()));
    upload.addEventListener("abort", () => reject(new DOMException("Stopped.", "AbortError")));
    upload.addEventListener("loadend", () => signal?.removeEventListener("abort", stop));
    if (signal?.aborted) {
      reject(new DOMException("Stopped.", "AbortError"));
      return;
    }
    signal?.addEventListener("abort", stop);
    upload.send(form);
  });
}

async function retried(attempt) {
  for (;;) {
    const before = answers;
    try {
      return await attempt();
    } catch (error) {
      const refused = error instanceof ApiError && (error.status === 401 || error.code === "scope_missing");
      if (!refused || !(await keyGiven(error, before))) throw error;
    }
  }
}

let answers = 0; // how often someone was asked for a key, and answered
let given = false; // whether it was with a key
let asking = null;

/** Whether there is another key to try than `before` so many answers; asks for it if there was none since. */
async function keyGiven(error, before) {
  if (answers === before) {
    asking ??= askForKey(error).then((was) => {
      given = was;
      answers += 1;
      asking = null;
    });
    await asking;
  }
  return given;
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw gone();
  }
  back();
  return response;
}

async function answer(response) {
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

async function problem(response) {
  let told = {};
  try {
    told = await response.json();
  } catch {
    // A proxy in front answers in its own way.
    told = { detail: `The server answered ${response.status} ${response.statusText}`.trim() + "." };
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new ApiError({ ...told, status: response.status, retryAfter });
}

// The server that is gone: asked again and again, until it is back.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;

let isGone = false;

function gone() {
  if (!isGone) {
    isGone = true;
    events.dispatchEvent(new Event("gone"));
    lookAgain(FIRST_WAIT_MS);
  }
  return new ServerGone();
}

function back() {
  if (!isGone) return;
  isGone = false;
  events.dispatchEvent(new Event("back"));
}

function lookAgain(wait) {
  setTimeout(async () => {
    if (!isGone) return;
    try {
      const response = await fetch("health/ready");
      if (response.ok) {
        back();
        return;
      }
    } catch {
      // Still gone.
    }
    lookAgain(Math.min(2 * wait, LONGEST_WAIT_MS));
  }, wait);
}
