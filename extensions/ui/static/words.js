// How times and spans are said, and how what is shown is written for other programs.

const UNITS = [
  ["year", 31_557_600],
  ["day", 86_400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** A span of seconds in its two largest units: 4 min 12 s, 2 h 5 min, 73 years. */
export function span(seconds) {
  let rest = Math.max(0, Math.floor(seconds));
  const first = UNITS.findIndex(([, size]) => rest >= size);
  if (first < 0) return "0 s";
  const parts = [];
  for (const [unit, size] of UNITS.slice(first, first === 0 ? 1 : first + 2)) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count) parts.push(`${count} ${unit}${unit.length > 3 || unit === "day" ? plural(count) : ""}`);
  }
  return parts.join(" ");
}

export function plural(count) {
  return count === 1 ? "" : "s";
}

/** A number as people read it. */
export const number = (count) => count.toLocaleString("en-GB");

export function counted(count, word) {
  return `${number(count)} ${word}${plural(count)}`;
}

/** A DateTime of the wire in milliseconds; NaN when there is none. */
export function moment(wire) {
  return Date.parse(wire || "");
}

/** Milliseconds as a DateTime of the wire, rounded up as the service does it. */
export function wire(milliseconds) {
  return new Date(Math.ceil(milliseconds / 1000) * 1000).toISOString().replace(".000Z", "Z");
}

/** A DateTime as people read it, in UTC; the day only when it is not today. */
export function utc(dateTime, today) {
  if (!dateTime) return "–";
  const [day, clock] = dateTime.replace("Z", "").split("T");
  return day === new Date(today).toISOString().slice(0, 10) ? clock : `${day} ${clock}`;
}

export function local(dateTime) {
  const time = moment(dateTime);
  return Number.isNaN(time) ? null : `${new Date(time).toLocaleString()} local time`;
}

/** What a name should look like that the service refuses with this message. */
export function convention(message, kind = "") {
  if (kind !== "owner" && /^The specified service (instance|definition)|^Version verification/.test(message)) {
    return "System|service|version: letters and digits, the system with a capital first, the service with a small letter; a version as 1.0.0";
  }
  if (kind !== "instance" && message.startsWith("The specified system name")) return "A system's name: letters and digits, a capital first";
  return "";
}

/** An instance's three parts. */
export function parts(instance) {
  const [system, service, version] = instance.split("|");
  return { system, service: service ?? "", version: version ?? "" };
}

/**
 * Entries as CSV, where no value is taken for a formula or for two cells. Where a locale separates
 * cells by `;` or a tab, a spreadsheet does so within quotes too: no value holds one, or a line end.
 */
export function csv(columns, entries) {
  const cell = (value) => {
    const text = String(value ?? "").replaceAll(";", ",").replace(/\p{Cc}+/gu, " ");
    const safe = /^\s*[=+\-@＝＋－＠]/u.test(text) ? `'${text}` : text;
    return /[",]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = [columns, ...entries.map((entry) => columns.map((it) => entry[it]))];
  return `\ufeff${lines.map((line) => line.map(cell).join(",") + "\r\n").join("")}`; // Excel knows UTF-8 by the mark
}

export function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A text as one word of a shell. */
export function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
