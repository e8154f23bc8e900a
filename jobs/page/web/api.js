// Requests to jobs.prompt. Each returns a promise of the result of a method of jobs/page/session.py.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // of HTTP; 0: no response
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
    throw new ApiError("jobs.prompt does not respond. Check that it is still running.", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.trim();
  try {
    message = JSON.parse(text).error;
  } catch { /* not JSON: an error of aiohttp, shown as it is */ }
  throw new ApiError(message, response.status);
}

const json = async (...parts) => (await request(...parts)).json();

export const api = {
  project: () => json("GET", "/api/project"),
  video: (id, signal) => json("GET", "/api/video", { id }, undefined, signal),
  rows: (id) => json("GET", "/api/rows", { id }),
  timestamps: (id, start) => json("GET", "/api/timestamps", { id, start }),
  masks: (id, index) => json("GET", "/api/masks", { id, index }),
  frame: async (id, index, version) =>
    (await request("GET", "/api/frame", { id, index, version })).blob(),
  encodeAhead: (id, index, version) => json("POST", "/api/encode", null, { id, index, version }),
  save: (id, revision, rows) => json("PUT", "/api/rows", null, { id, revision, rows }),
  undo: (id, revision, redo) => json("POST", "/api/undo", null, { id, revision, redo }),
  preview: (id, index, version, objects, signal) =>
    json("POST", "/api/preview", null, { id, index, version, objects }, signal),
  track: (id, frame, count) => json("POST", "/api/track", null, { id, frame, count }),
  tracked: (id, since) => json("GET", "/api/track", { id, since }),
  cancel: (id) => json("DELETE", "/api/track", { id }),
  done: () => json("POST", "/api/done", null, {}),
};
