// Dialogs, and the parts of a table: its head, its cells, its pages.

import { el, setAttribute, setText } from "./dom.js";
import { formatNumber } from "./format.js";

export function showCurl(title, command) {
	const status = el("span", { role: "status" });
	const text = el("pre", { tabindex: "0", "aria-label": "Command" }, command);
	const copyText = async () => {
		try {
			await navigator.clipboard.writeText(command);
			setText(status, "Copied.");
		} catch {
			getSelection().selectAllChildren(text);
			setText(status, "Selected: copy it with your keyboard.");
		}
	};
	const copy = el("button.main", { onclick: copyText }, "Copy");
	const close = el("button", { onclick: () => box.close() }, "Close");
	const box = dialog(title, text, el("div.buttons", status, copy, close));
	box.showModal();
	copy.focus();
}

export function dialog(title, ...children) {
	const heading = el("h2", { id: "dialog-title" }, title);
	const box = el("dialog", { "aria-labelledby": "dialog-title" }, heading, ...children);
	box.addEventListener("close", () => box.remove());
	document.body.append(box);
	return box;
}

/** A form. `submit` returns what is wrong, or nothing. */
export function form(fields, title, submit) {
	const problem = el("p.refused", { role: "alert" });
	const button = el("button.main", { type: "submit" }, title);
	const element = el("form", ...fields, problem, el("div.buttons", button));
	element.addEventListener("submit", async (event) => {
		event.preventDefault();
		setText(problem, "");
		setText(problem, (await submit()) ?? "");
	});
	return element;
}

/** A choice of one of these: titles by value, the first chosen. */
export function segments(legend, name, choices) {
	const labels = Object.entries(choices).map(([value, title], index) =>
		el(
			"label",
			el("input", { type: "radio", name, value, checked: index === 0 }),
			el("span", title),
		),
	);
	return el("fieldset.field", el("legend", legend), el("div.segments", ...labels));
}

export function pager(sizes, navigate) {
	const range = el("p.range");
	let page = 0;
	const turn = (step) => (event) => {
		// A button that is `disabled` would lose the focus.
		if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
		navigate({ page: page + step === 0 ? null : String(page + step + 1) });
	};
	const previous = el("button", { onclick: turn(-1) }, "‹ Previous");
	const next = el("button", { onclick: turn(1) }, "Next ›");
	const resize = () => navigate({ size: size.value, page: null });
	const options = sizes.map((it) => el("option", { value: it }, `${it} rows`));
	const size = el("select", { "aria-label": "Rows on a page", onchange: resize }, ...options);
	return {
		element: el("nav.pager", { "aria-label": "Pages" }, range, previous, next, size),
		show(pagination, total) {
			page = pagination.page;
			if (![...size.options].some((it) => Number(it.value) === pagination.size)) {
				size.append(el("option", { value: pagination.size }, `${pagination.size} rows`));
			}
			if (document.activeElement !== size) size.value = String(pagination.size);
			const first = page * pagination.size;
			const end = Math.min(first + pagination.size, total);
			setText(range, describeRange(page, first, end, total));
			setAttribute(previous, "aria-disabled", String(page === 0));
			setAttribute(next, "aria-disabled", String(first + pagination.size >= total));
		},
	};
}

function describeRange(page, first, end, total) {
	if (!total) return "";
	if (first >= total) return `Page ${page + 1} is beyond the last of ${formatNumber(total)}`;
	return `${formatNumber(first + 1)}–${formatNumber(end)} of ${formatNumber(total)}`;
}

/**
 * A table. A column with `sort` has a button that sorts by that field, at first in the direction
 * `first`; `by` is the button's text if it sorts by something that the column does not show.
 */
export function createTable(name, columns, navigate) {
	const headings = columns.map((column) => createHeading(column, navigate));
	const head = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...headings));
	const body = el("tbody", { role: "rowgroup" });
	const attributes = { role: "table", tabindex: "-1", "aria-labelledby": "title" };
	return {
		element: el(`table.${name}`, attributes, head, body),
		body,
		showOrder({ sortField, direction }) {
			const order = direction.toUpperCase() === "ASC" ? "ascending" : "descending";
			for (const heading of headings) {
				setAttribute(heading, "aria-sort", heading.dataset.sort === sortField ? order : null);
			}
		},
	};
}

function createHeading({ title, sort, by, hidden, first = "ASC" }, navigate) {
	const heading = el("th", { role: "columnheader", scope: "col", "data-sort": sort });
	if (sort) {
		const turned = { ascending: "DESC", descending: "ASC" };
		const sortBy = () => {
			const direction = turned[heading.getAttribute("aria-sort")] ?? first;
			navigate({ sort, direction, page: null });
		};
		const button = el("button.sort", { onclick: sortBy }, by ?? title);
		heading.append(by ? `${title} ` : "", button);
	} else {
		heading.append(hidden ? el("span.unseen", title) : title);
	}
	return heading;
}

/** A cell. Its label is shown on a narrow screen. */
export function cell(label, ...children) {
	return el("td", { role: "cell", "data-label": label }, ...children);
}
