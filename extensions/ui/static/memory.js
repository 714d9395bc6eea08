// What the page remembers of locks, because no operation tells it: since when one is held.

import { about, historyQuery, lockQuery, now, Refusal } from "./service.js";
import { moment } from "./words.js";

const AT_MOST = 5000; // locks

/** By id: the entry, and in ms where it is known, its start and its end. */
const known = new Map();
let newest = null; // the largest id seen so far: what is above it is new
const asked = new Set(); // jobs whose start has been asked for

/** Remember the locks of an answer, and find out since when they are held. */
export async function remember(entries) {
  const present = now();
  const highest = Math.max(newest ?? 0, ...entries.map((it) => it.id));
  for (const entry of entries) {
    const before = known.get(entry.id);
    if (before) Object.assign(before, { entry, end: moment(entry.expiresAt) });
    else {
      const start = newest !== null && entry.id > newest ? present : null;
      known.set(entry.id, { entry, seen: present, start, end: moment(entry.expiresAt) });
    }
  }
  newest = highest;
  for (const id of known.keys()) {
    if (known.size <= AT_MOST) break;
    known.delete(id);
  }
  await startsOfJobs(entries);
}

/** A job's lock is held since the job was started, or a little later. */
async function startsOfJobs(entries) {
  const unknown = entries.filter((it) => it.orchestrationJobId && known.get(it.id).start === null);
  const ids = [...new Set(unknown.map((it) => it.orchestrationJobId))].filter((it) => !asked.has(it));
  if (!ids.length) return;
  let jobs = [];
  try {
    jobs = (await historyQuery({ ids })).entries;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error; // one may see locks and not the history
  }
  if (asked.size > AT_MOST) asked.clear();
  ids.forEach((it) => asked.add(it));
  const starts = new Map(jobs.map((it) => [it.id, moment(it.startedAt)]));
  for (const { id, orchestrationJobId } of unknown) {
    const start = starts.get(orchestrationJobId);
    if (start) known.get(id).start = start;
  }
}

/** Which part of its time a lock still has, from 1 to 0; what is unknown began when it was seen. */
export function left(id, present) {
  const lock = known.get(id);
  if (!lock) return 1;
  const start = lock.start ?? lock.seen;
  return Math.min(1, Math.max(0, (lock.end - present) / Math.max(1, lock.end - start)));
}

/** What is known of the locks on these instances that touch a span of time. */
export function between(instances, from, until) {
  return [...known.values()].filter(
    (it) => instances.has(it.entry.serviceInstanceId) && it.end > from && (it.start ?? from) < until,
  );
}

/** Learn which of the locks that an answer has no more were given back before their time. */
export async function missed(entries, instances) {
  const there = new Set(entries.map((it) => it.id));
  const present = now();
  const gone = [...known.values()]
    .filter((it) => instances.has(it.entry.serviceInstanceId) && it.end > present && !there.has(it.entry.id))
    .slice(0, about.maxPageSize); // the rest at the next refresh
  if (!gone.length) return;
  const ids = gone.map((it) => it.entry.id);
  const still = new Set((await lockQuery({ ids })).entries.map((it) => it.id));
  for (const it of gone) if (!still.has(it.entry.id)) it.end = present;
}

/** Nothing of it is for the next who asks. */
export function forget() {
  known.clear();
  asked.clear();
  newest = null;
}
