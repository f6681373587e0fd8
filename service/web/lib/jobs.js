// Long work of the service: its progress as it is told, and its end.

import { ApiError, authorization, getJson, isAbort, send } from "./api.js";

const POLL_MS = 500;

/**
 * The result of a job, once it is done.
 *
 * @param {string} id the job's.
 * @param {(progress: {done: number, total: number, stage: string}) => void} [options.onProgress]
 * @param {AbortSignal} [options.signal] stops the watching, not the job: see `cancel`.
 */
export async function follow(id, { onProgress = () => {}, signal } = {}) {
  let job = null;
  try {
    for await (const told of events(id, signal)) {
      job = told;
      onProgress(job.progress);
    }
  } catch (error) {
    if (isAbort(error)) throw error;
    // A stream that broke off: ask for what it would have told.
  }
  while (job === null || job.state === "queued" || job.state === "running") {
    if (job !== null) await pause(POLL_MS, signal);
    job = await getJson(`jobs/${id}`, { signal });
    onProgress(job.progress);
  }
  if (job.state === "done") return job.result;
  throw new ApiError({
    status: 0,
    code: job.problem?.code ?? job.state,
    detail: job.problem?.detail ?? (job.state === "cancelled" ? "It was stopped." : `The job is ${job.state}.`),
  });
}

/** Stop a job at its next step. */
export function cancel(id) {
  return send("DELETE", `jobs/${id}`);
}

// EventSource sends no headers, and so no key.
async function* events(id, signal) {
  const response = await fetch(`jobs/${id}/events`, { headers: authorization(), signal });
  if (!response.ok || response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value.replaceAll("\r\n", "\n");
      let end = text.indexOf("\n\n");
      while (end >= 0) {
        const data = text
          .slice(0, end)
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trim())
          .join("\n");
        text = text.slice(end + 2);
        if (data) yield JSON.parse(data);
        end = text.indexOf("\n\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(new DOMException("Stopped.", "AbortError"));
      },
      { once: true },
    );
  });
}
