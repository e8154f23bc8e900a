// Requests to jobs.prompt. Every call gives a promise of what jobs/page/session.py returns.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

async function request(method, path, query, body, signal) {
  const address = query ? `${path}?${new URLSearchParams(query)}` : path;
  const options = { method, signal };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("jobs.prompt does not answer: is it still running?", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.trim();
  try {
    message = JSON.parse(text).error;
  } catch { /* not ours: as it is */ }
  throw new ApiError(message, response.status);
}

const json = async (...parts) => (await request(...parts)).json();

export const api = {
  project: () => json("GET", "/api/project"),
  video: (id) => json("GET", "/api/video", { id }),
  rows: (id) => json("GET", "/api/rows", { id }),
  moments: (id, start) => json("GET", "/api/moments", { id, start }),
  masks: (id, index) => json("GET", "/api/masks", { id, index }),
  frame: async (id, index, version) =>
    (await request("GET", "/api/frame", { id, index, version })).blob(),
  look: (id, index, version) => json("POST", "/api/look", null, { id, index, version }),
  save: (id, revision, rows) => json("PUT", "/api/rows", null, { id, revision, rows }),
  undo: (id, revision, redo) => json("POST", "/api/undo", null, { id, revision, redo }),
  preview: (id, index, version, asked, signal) =>
    json("POST", "/api/preview", null, { id, index, version, asked }, signal),
  track: (id, here, count) => json("POST", "/api/track", null, { id, here, count }),
  tracked: (id, since) => json("GET", "/api/track", { id, since }),
  cancel: (id) => json("DELETE", "/api/track", { id }),
  done: () => json("POST", "/api/done", null, {}),
};
