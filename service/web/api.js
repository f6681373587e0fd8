// Calls of the HTTP interface. A refusal becomes an error that carries the problem's own words.

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  throw new Error(answer?.detail ?? `The service answered with status ${response.status}.`);
}

export const model = () => call("model");

export const evaluate = () => call("evaluate", { method: "POST" });

export function search(file, count, signal) {
  const form = new FormData();
  form.append("file", file);
  return call(`search?k=${count}`, { method: "POST", body: form, signal });
}
