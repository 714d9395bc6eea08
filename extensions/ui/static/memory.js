// What the page remembers of locks. No operation tells since when a lock is held, or when it ended.

import { parseTime } from "./format.js";
import { queryJobs, queryLocks, Refusal, serviceInfo, serviceTime } from "./service.js";

const MAX_LOCKS = 5000;

/** By id: `entry`, `seen` when the page first saw it, `end`, and `start` or null; in ms. */
const locks = new Map();
let newestId = null; // a lock with a larger id is new
const jobsAskedFor = new Set(); // by id

export async function rememberLocks(entries) {
	const now = serviceTime();
	for (const entry of entries) {
		const end = parseTime(entry.expiresAt);
		const known = locks.get(entry.id);
		if (known) Object.assign(known, { entry, end });
		else {
			const isNew = newestId !== null && entry.id > newestId;
			locks.set(entry.id, { entry, seen: now, start: isNew ? now : null, end });
		}
	}
	newestId = Math.max(newestId ?? 0, ...entries.map((it) => it.id));
	for (const id of locks.keys()) {
		if (locks.size <= MAX_LOCKS) break;
		locks.delete(id);
	}
	await learnStarts(entries);
}

/** A job's lock is held since the job started, or a little later. */
async function learnStarts(entries) {
	const unknown = entries.filter((it) => it.orchestrationJobId && locks.get(it.id).start === null);
	const jobIds = new Set(unknown.map((it) => it.orchestrationJobId));
	const ids = [...jobIds].filter((it) => !jobsAskedFor.has(it));
	if (!ids.length) return;
	let jobs = [];
	try {
		jobs = (await queryJobs({ ids })).entries;
	} catch (error) {
		if (!(error instanceof Refusal)) throw error; // a requester may see locks but no jobs
	}
	if (jobsAskedFor.size > MAX_LOCKS) jobsAskedFor.clear();
	for (const id of ids) jobsAskedFor.add(id);
	const starts = new Map(jobs.map((it) => [it.id, parseTime(it.startedAt)]));
	for (const { id, orchestrationJobId } of unknown) {
		const start = starts.get(orchestrationJobId);
		if (start) locks.get(id).start = start;
	}
}

/**
 * The share of its time that a lock has left, from 1 to 0. If its start is unknown, its time counts
 * from when the page first saw it.
 */
export function shareLeft(id, now) {
	const lock = locks.get(id);
	if (!lock) return 1;
	const start = lock.start ?? lock.seen;
	return Math.min(1, Math.max(0, (lock.end - now) / Math.max(1, lock.end - start)));
}

export function locksBetween(instances, from, until) {
	return [...locks.values()].filter(
		({ entry, start, end }) =>
			instances.has(entry.serviceInstanceId) && end > from && (start ?? from) < until,
	);
}

/** Find out which locks that an answer no longer contains were removed before they expired. */
export async function noticeRemoved(entries, instances) {
	const now = serviceTime();
	const answered = new Set(entries.map((it) => it.id));
	const missing = [...locks.values()]
		.filter((it) => instances.has(it.entry.serviceInstanceId))
		.filter((it) => it.end > now && !answered.has(it.entry.id))
		.slice(0, serviceInfo.maxPageSize); // the next refresh asks for the rest
	if (!missing.length) return;
	const ids = missing.map((it) => it.entry.id);
	const held = new Set((await queryLocks({ ids })).entries.map((it) => it.id));
	for (const it of missing) if (!held.has(it.entry.id)) it.end = now;
}

/** Forget everything: another requester may not be allowed to see it. */
export function forgetLocks() {
	locks.clear();
	jobsAskedFor.clear();
	newestId = null;
}
