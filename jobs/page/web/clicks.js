// The rows of a video: what they say, and changes of them, saved one after another.

const WORDS = ["accept", "end", "absent"];

export const isWord = (row) => WORDS.includes(row.role);
export const isPlaced = (row) => row.x !== undefined && !isWord(row);
const keep = (row) => ({ row: row.row });
const covers = (row, frame) => row.frame <= frame && frame <= (row.until ?? row.frame);

export class Clicks {
  /** on.changed(), on.saving(), on.saved(), on.failed(error); send: the requests of api.js */
  constructor(send, on) {
    this.send = send;
    this.on = on;
    this.names = new Map(); // of objects that have no row yet
    this.queue = Promise.resolve();
    this.waiting = 0;
    this.refused = false; // whether the last change was not saved
    this.leave();
  }

  /** Be of no video, until rows are taken. */
  leave() {
    Object.assign(this, { id: null, rows: [], pending: [], undoable: 0, redoable: 0, about: {} });
    this.names.clear();
  }

  /** Take a video's rows, as the server gave them. */
  take(id, answer) {
    this.id = id;
    Object.assign(this, {
      rows: answer.rows, revision: answer.revision, undoable: answer.undo, redoable: answer.redo,
      about: answer.video,
    });
    this.on.changed();
  }

  // What they say

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

  /** Frames on which something is said, in order. */
  get prompted() {
    const frames = this.all.filter((row) => row.role !== "accept").map((row) => row.frame);
    return [...new Set(frames)].filter((frame) => frame !== null).sort((a, b) => a - b);
  }

  /** Whether it was said before a frame where an object is. */
  begun(object, frame) {
    const before = this.all.filter((row) => row.object_id === object && row.frame < frame);
    return before.some((row) => isPlaced(row) && (row.label === 1 || row.x2 !== undefined));
  }

  /** Runs [first, last, state] on which an object is asked for, absent, or ended. */
  coverage(object, count) {
    const words = this.all
      .filter((row) => row.object_id === object && row.frame !== null && row.role !== "accept")
      .sort((a, b) => a.frame - b.frame);
    if (!words.length) return [];
    const runs = [];
    let first = 0, state = "asked";
    for (const word of words) {
      const now = word.role === "absent" || word.role === "end" ? word.role : "asked";
      if (now === state) continue;
      if (word.frame > first && state !== "end") runs.push([first, word.frame - 1, state]);
      [first, state] = [word.frame, now];
    }
    if (state !== "end") runs.push([first, count - 1, state]);
    return runs;
  }

  // Changes

  /** Add a point or a box. role: what a first click of its object on that frame is. */
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
      ...rows.filter((row) => !gone(row, frame, object, boxed)).map(keep), plain(columns),
    ]);
  }

  /** Say a word (absent, end) of an object from a frame on, instead of clicks; or unsay it. */
  word(frame, object, role) {
    const mine = (row) => row.frame === frame && row.object_id === object && row.role !== "accept";
    return this.edit([], (rows) => {
      const said = rows.some((row) => mine(row) && row.role === role);
      const others = rows.filter((row) => !mine(row)).map(keep);
      const name = this.nameOf(object);
      return said ? others : [...others, plain({ object_id: object, object_name: name, frame, role })];
    });
  }

  accept(span) {
    const row = {
      object_id: span.object_id, frame: span.first_frame, until: span.last_frame, role: "accept",
    };
    return this.edit([], (rows) => [...rows.map(keep), plain(row)]);
  }

  /** Change columns of a row, such as where it is. */
  change(row, columns) {
    return this.edit([], (rows) => {
      const mine = find(rows, row);
      return rows.map((other) => (other === mine ? { ...keep(other), ...columns } : keep(other)));
    });
  }

  remove(row) {
    return this.edit([], (rows) => {
      const mine = find(rows, row);
      return rows.filter((other) => other !== mine).map(keep);
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
    return this.after(async () => this.send.undo(this.id, this.revision, redo));
  }

  /** Have the rows replaced by change(rows), once all changes before are on disk. */
  edit(shown, change) {
    this.pending.push(...shown);
    this.on.changed();
    return this.after(async () => {
      const answer = await this.send.save(this.id, this.revision, change(this.rows));
      this.pending = this.pending.filter((row) => !shown.includes(row));
      return answer;
    }, shown);
  }

  after(request, shown = []) {
    const id = this.id;
    this.waiting++;
    this.on.saving();
    const turn = this.queue.then(async () => {
      try {
        if (id === null) throw new Error("the video is not open yet");
        if (id !== this.id) throw new Error("this video was left before its last click was saved");
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

/** What a new click of an object replaces: a word on its frame, an accept of it, a second box. */
function gone(row, frame, object, boxed) {
  if (row.object_id !== object) return false;
  if (row.role === "accept") return covers(row, frame);
  return row.frame === frame && (isWord(row) || (boxed && row.x2 !== undefined));
}

/** The row that is meant: its number may have changed since it was shown. */
function find(rows, row) {
  const names = ["object_id", "frame", "role", "x", "y", "x2", "y2", "label"];
  return rows.find((other) => names.every((name) => other[name] === row[name]));
}

/** Columns of a new row, without those that say nothing. */
function plain(columns) {
  const { role, object_name: name, prompt_type: type, label, ...rest } = columns;
  if (label !== undefined && type === undefined) rest.label = label;
  if (type) rest.prompt_type = type;
  if (name) rest.object_name = name;
  if (role && role !== "init") rest.role = role;
  return rest;
}
