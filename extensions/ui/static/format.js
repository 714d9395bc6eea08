// How values are written: times, counts and instances for people, CSV and shell words for programs.

const UNITS = [
	["year", 31_557_600],
	["day", 86_400],
	["h", 3600],
	["min", 60],
	["s", 1],
];

/** The statuses of a job: a mark that can be told apart without colour, and a word. */
export const STATUSES = {
	DONE: { mark: "✓", word: "Done" },
	ERROR: { mark: "✕", word: "Error" },
	IN_PROGRESS: { mark: "◐", word: "In progress" },
	PENDING: { mark: "○", word: "Pending" },
};

/** A number of seconds in its two largest units: 4 min 12 s, 2 h 5 min, 73 years. */
export function formatDuration(seconds) {
	let rest = Math.max(0, Math.floor(seconds));
	const first = UNITS.findIndex(([, size]) => rest >= size);
	if (first < 0) return "0 s";
	const parts = [];
	for (const [unit, size] of UNITS.slice(first, first === 0 ? 1 : first + 2)) {
		const count = Math.floor(rest / size);
		rest -= count * size;
		if (count)
			parts.push(`${count} ${unit}${unit === "year" || unit === "day" ? plural(count) : ""}`);
	}
	return parts.join(" ");
}

export function plural(count) {
	return count === 1 ? "" : "s";
}

export function formatNumber(count) {
	return count.toLocaleString("en-GB");
}

/** A count with its noun: 1 lock, 2 locks. */
export function formatCount(count, noun) {
	return `${formatNumber(count)} ${noun}${plural(count)}`;
}

/** A DateTime of the service in ms since the epoch; NaN if it is empty. */
export function parseTime(dateTime) {
	return Date.parse(dateTime || "");
}

/** A time in ms as a DateTime of the service, rounded up to a second as the service does. */
export function toDateTime(time) {
	return new Date(Math.ceil(time / 1000) * 1000).toISOString().replace(".000Z", "Z");
}

/** A time in ms, in UTC: the clock, and before it the day unless that is today. */
export function formatUtc(time, now) {
	if (Number.isNaN(time)) return "–";
	const [day, clock] = new Date(time).toISOString().slice(0, 19).split("T");
	return day === new Date(now).toISOString().slice(0, 10) ? clock : `${day} ${clock}`;
}

/** A DateTime in the browser's time zone. */
export function formatLocal(dateTime) {
	const time = parseTime(dateTime);
	return Number.isNaN(time) ? null : `${new Date(time).toLocaleString()} local time`;
}

/** The naming convention that a name breaks, if this message of the service says that it does. */
export function namingHint(message, kind = "") {
	const instance = /^The specified service (instance|definition)|^Version verification/;
	if (kind !== "owner" && instance.test(message)) {
		return (
			"System|service|version: letters and digits. The system starts with a capital letter, " +
			"the service with a small letter. The version looks like 1.0.0."
		);
	}
	if (kind !== "instance" && message.startsWith("The specified system name")) {
		return "A system's name: letters and digits, starting with a capital letter.";
	}
	return "";
}

export function splitInstance(instance) {
	const [system, service, version] = instance.split("|");
	return { system, service: service ?? "", version: version ?? "" };
}

/**
 * Entries as CSV. No value can become a formula or split into two cells. Some spreadsheets separate
 * cells at `;` or a tab even within quotes, so values contain neither, and no line ends.
 */
export function toCsv(entries) {
	const keys = [...new Set(entries.flatMap(Object.keys))];
	const cell = (value) => {
		const text = String(value ?? "")
			.replaceAll(";", ",")
			.replace(/\p{Cc}+/gu, " ");
		const safe = /^\s*[=+\-@＝＋－＠]/u.test(text) ? `'${text}` : text;
		return /[",]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
	};
	const rows = [keys, ...entries.map((entry) => keys.map((key) => entry[key]))];
	const lines = rows.map((row) => row.map(cell).join(",") + "\r\n");
	return `\ufeff${lines.join("")}`; // the mark tells Excel that this is UTF-8
}

export function download(name, type, content) {
	const link = document.createElement("a");
	link.href = URL.createObjectURL(new Blob([content], { type }));
	link.download = name;
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A text as one word of a shell command. */
export function shellQuote(text) {
	return `'${text.replaceAll("'", "'\\''")}'`;
}
