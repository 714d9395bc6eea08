// What all views do with their entries: filter, sort and page them, count them, and export them.

import { el, setText } from "./dom.js";
import { filterForm, filterQuery, queryFiltered } from "./filters.js";
import { download, formatCount, toCsv } from "./format.js";
import { asCurl, serviceInfo } from "./service.js";
import { pager, showCurl } from "./widgets.js";

/**
 * The entries that the address asks for. `kind` says what they are: the `noun` for one, what to say
 * if there are `none`, how to `ask` for them, their `filters`, and the usual page.
 */
export class List {
	address = new URLSearchParams();
	entries = [];
	total = 0;

	constructor(kind, navigate, ...tools) {
		this.kind = kind;
		this.form = filterForm(kind.filters, navigate);
		this.pager = pager(kind.sizes, navigate);
		this.count = el("p.count", { "aria-live": "off" });
		this.empty = el("p.empty", { hidden: true });
		this.toolbar = el("div.toolbar", this.count, el("div.tools", ...tools, ...this.exports()));
	}

	exports() {
		const { noun, ask } = this.kind;
		const showCommand = () => showCurl("This view as a command", ask(this.query, asCurl));
		const asJson = () =>
			download(`${noun}s.json`, "application/json", JSON.stringify(this.entries, null, 2));
		const asCsv = () => download(`${noun}s.csv`, "text/csv", toCsv(this.entries));
		return [
			el("button", { onclick: showCommand }, "Show as curl"),
			el("button", { onclick: asJson, "aria-label": "Download this page as JSON" }, "JSON"),
			el("button", { onclick: asCsv, "aria-label": "Download this page as CSV" }, "CSV"),
		];
	}

	setAddress(address) {
		this.address = address;
		this.form.show(address);
	}

	get filters() {
		return filterQuery(this.kind.filters, this.address);
	}

	get query() {
		return { ...this.filters, pagination: this.pagination };
	}

	/** People count pages from 1, the service from 0. */
	get pagination() {
		const { size, sort, direction } = this.kind;
		const positive = (name, otherwise) => {
			const value = Number.parseInt(this.address.get(name), 10);
			return value >= 1 && value < 1e9 ? value : otherwise;
		};
		return {
			page: positive("page", 1) - 1,
			size: Math.min(positive("size", size), serviceInfo.maxPageSize),
			sortField: this.address.get("sort") || sort,
			direction: this.address.get("direction") || direction,
		};
	}

	load() {
		const { filters, ask } = this.kind;
		return queryFiltered(filters, this.address, ask, { pagination: this.pagination });
	}

	show(answer) {
		this.entries = answer?.entries ?? [];
		this.total = answer?.count ?? 0;
		this.empty.hidden = !answer || this.entries.length > 0;
		const isFiltered = Object.keys(this.filters).length > 0;
		setText(
			this.empty,
			isFiltered ? `No ${this.kind.noun} matches these filters.` : this.kind.none,
		);
		this.showTotal();
		if (!answer) setText(this.count, "");
	}

	keep(wanted) {
		const kept = this.entries.filter(wanted);
		this.total -= this.entries.length - kept.length;
		this.entries = kept;
		this.showTotal();
	}

	showTotal() {
		setText(this.count, formatCount(this.total, this.kind.noun));
		this.pager.show(this.pagination, this.total);
	}
}
