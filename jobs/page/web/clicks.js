// The rows of a video, and changes of them, which are saved one after another.

const ROLES_WITHOUT_PLACE = ["accept", "end", "absent"];

/** Whether a row has a place on the frame; a mask or a polygon has no handle there. */
export const hasHandle = (row) => row.x !== undefined;
export const isPlaced = (row) =>
  (hasHandle(row) || row.shape !== undefined) && !ROLES_WITHOUT_PLACE.includes(row.role);
const keep = (row) => ({ row: row.row });
const covers = (row, frame) => row.frame <= frame && frame <= (row.until ?? row.frame);

export class Clicks {
  /** on.changed(), on.saving(), on.saved(), on.failed(error); send: the requests of api.js */
  constructor(send, on) {
    this.send = send;
    this.on = on;
    this.names = new Map(); // names of objects that have no row yet
    this.queue = Promise.resolve();
    this.waiting = 0;
    this.refused = false; // whether the last change was not saved
    this.clear();
  }

  /** Forget the video; there is none until `take` is called. */
  clear() {
    Object.assign(this, { id: null, rows: [], pending: [], undoable: 0, redoable: 0, about: {} });
    this.names.clear();
  }

  /** Replace the rows by those in an answer of the server. */
  take(id, answer) {
    this.id = id;
    Object.assign(this, {
      rows: answer.rows, revision: answer.revision, undoable: answer.undo, redoable: answer.redo,
      about: answer.video,
    });
    this.on.changed();
  }

  // Queries

  get all() {
    return [...this.rows, ...this.pending];
  }

  at(frame, object) {
    return this.all.filter(
      (row) => row.frame === frame && isPlaced(row) && (object === undefined || row.object_id === object),
    );
  }

  get objects() {
    const found = new Set(this.all.map((row) => row.object_id));
    for (const object of this.names.keys()) found.add(object);
    return [...found].sort((a, b) => a - b);
  }

  nameOf(object) {
    const named = this.all.find((row) => row.object_id === object && row.object_name);
    return named?.object_name ?? this.names.get(object) ?? "";
  }

  /** The frames with prompts, in order. */
  get prompted() {
    const frames = this.all.filter((row) => row.role !== "accept").map((row) => row.frame);
    return [...new Set(frames)].filter((frame) => frame !== null).sort((a, b) => a - b);
  }

  /** Whether an object has a positive point or a box before a frame. */
  locatedBefore(object, frame) {
    const before = this.all.filter((row) => row.object_id === object && row.frame < frame);
    return before.some((row) => isPlaced(row) && (row.label === 1 || row.x2 !== undefined || row.shape));
  }

  /** Stretches [first, last, state] of frames on which an object is requested or absent. */
  coverage(object, count) {
    const rows = this.all
      .filter((row) => row.object_id === object && row.frame !== null && row.role !== "accept")
      .sort((a, b) => a.frame - b.frame);
    if (!rows.length) return [];
    const stretches = [];
    let first = 0, state = "requested";
    for (const row of rows) {
      const now = row.role === "absent" || row.role === "end" ? row.role : "requested";
      if (now === state) continue;
      if (row.frame > first && state !== "end") stretches.push([first, row.frame - 1, state]);
      [first, state] = [row.frame, now];
    }
    if (state !== "end") stretches.push([first, count - 1, state]);
    return stretches;
  }

  // Changes

  /** Add a point or a box; role: that of the first click of an object on a frame. */
  add(frame, object, place, role) {
    const here = this.all.find((row) => row.frame === frame && row.object_id === object && isPlaced(row));
    const columns = {
      object_id: object, object_name: this.nameOf(object), frame, label: 1, ...place,
      role: here ? here.role : role,
    };
    if (columns.x2 !== undefined) columns.prompt_type = "box";
    const shown = { ...columns, pending: true };
    const boxed = place.x2 !== undefined;
    return this.edit([shown], (rows) => [
      ...rows.filter((row) => !replaced(row, frame, object, boxed)).map(keep), withoutEmpty(columns),
    ]);
  }

  /** Mark an object as absent or ended from a frame on, instead of its clicks there; or unmark it. */
  toggleRole(frame, object, role) {
    const here = (row) => row.frame === frame && row.object_id === object && row.role !== "accept";
    return this.edit([], (rows) => {
      const others = rows.filter((row) => !here(row)).map(keep);
      if (rows.some((row) => here(row) && row.role === role)) return others;
      const columns = { object_id: object, object_name: this.nameOf(object), frame, role };
      return [...others, withoutEmpty(columns)];
    });
  }

  accept(span) {
    const row = {
      object_id: span.object_id, frame: span.first_frame, until: span.last_frame, role: "accept",
    };
    return this.edit([], (rows) => [...rows.map(keep), withoutEmpty(row)]);
  }

  /** Change columns of a row, such as its position. */
  change(row, columns) {
    return this.edit([], (rows) => {
      const found = find(rows, row);
      return rows.map((other) => (other === found ? { ...keep(other), ...columns } : keep(other)));
    });
  }

  remove(row) {
    return this.edit([], (rows) => {
      const found = find(rows, row);
      return rows.filter((other) => other !== found).map(keep);
    });
  }

  rename(object, name) {
    if (!this.all.some((row) => row.object_id === object)) {
      this.names.set(object, name);
      return this.on.changed();
    }
    return this.edit([], (rows) => rows.map((row) =>
      row.object_id === object ? { ...keep(row), object_name: name } : keep(row)));
  }

  undo(redo = false) {
    return this.enqueue(async () => this.send.undo(this.id, this.revision, redo));
  }

  /** Replace the rows by change(rows), once all earlier changes are on disk. */
  edit(shown, change) {
    this.pending.push(...shown);
    this.on.changed();
    return this.enqueue(async () => {
      const answer = await this.send.save(this.id, this.revision, change(this.rows));
      this.pending = this.pending.filter((row) => !shown.includes(row));
      return answer;
    }, shown);
  }

  /** Send a request after the earlier ones; returns a promise of whether it was saved. */
  enqueue(request, shown = []) {
    const id = this.id;
    this.waiting++;
    this.on.saving();
    const turn = this.queue.then(async () => {
      try {
        if (id === null) throw new Error("the video is not open yet");
        if (id !== this.id) throw new Error("another video was opened before the last click was saved");
        const answer = await request();
        if (id === this.id) this.take(id, answer);
        this.waiting--;
        this.refused = false;
        if (!this.waiting) this.on.saved();
        return true;
      } catch (error) {
        this.waiting--;
        this.refused = true;
        this.pending = this.pending.filter((row) => !shown.includes(row));
        this.on.changed();
        this.on.failed(error);
        return false;
      }
    });
    this.queue = turn;
    return turn;
  }
}

/** Whether a new click replaces a row: an end or absent there, an accept, or, if it is a box, an
    earlier box, mask or polygon. */
function replaced(row, frame, object, boxed) {
  if (row.object_id !== object) return false;
  if (row.role === "accept") return covers(row, frame);
  const withoutPlace = ROLES_WITHOUT_PLACE.includes(row.role);
  return row.frame === frame && (withoutPlace || (boxed && (row.x2 !== undefined || row.shape !== undefined)));
}

/** The current row for a row that was shown, whose number may have changed. */
function find(rows, row) {
  const names = ["object_id", "frame", "role", "x", "y", "x2", "y2", "label", "shape"];
  return rows.find((other) => names.every((name) => other[name] === row[name]));
}

/** The columns of a new row without empty values and defaults. */
function withoutEmpty(columns) {
  const { role, object_name: name, prompt_type: type, label, ...rest } = columns;
  if (label !== undefined && type === undefined) rest.label = label;
  if (type) rest.prompt_type = type;
  if (name) rest.object_name = name;
  if (role && role !== "init") rest.role = role;
  return rest;
}
