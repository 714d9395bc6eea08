// What all views have in common: filters, what can be done with what is shown, and paging.

import { el, text, attribute } from "./dom.js";
import { csv, download, counted } from "./words.js";

/** The words between commas. */
export const words = (value) => value.split(",").map((it) => it.trim()).filter(Boolean);

/** The part of a query that the filters of the address ask for. */
export function filtered(filters, address) {
  const body = {};
  for (const { name, kind } of filters) {
    const value = address.get(name);
    if (value) body[name] = kind === "time" || kind === "choice" ? value : words(value);
  }
  return body;
}

/** The page that the address asks for; people count from 1. */
export function paged(address, { sizes, sort, direction }, largest) {
  const number = (name, otherwise) => {
    const value = Number.parseInt(address.get(name), 10);
    return value >= 1 && value < 1e9 ? value : otherwise;
  };
  return {
    page: number("page", 1) - 1,
    size: Math.min(number("size", sizes.usual), largest),
    sortField: address.get("sort") || sort,
    direction: address.get("direction") || direction,
  };
}

/** The form of the filters. `arrive` puts into it what the address holds. */
export function filterForm(filters, go) {
  const fields = filters.map((filter) => ({ filter, ...field(filter) }));
  const apply = () => {
    const changes = { page: null };
    for (const { filter, read } of fields) changes[filter.name] = read();
    go(changes);
  };
  const usual = fields.filter((it) => !it.filter.more).map((it) => it.element);
  const others = fields.filter((it) => it.filter.more).map((it) => it.element);
  const more = others.length
    ? el("details", { class: "more" }, el("summary", {}, "More filters"), el("div", { class: "fields" }, ...others))
    : null;
  const clear = el("button", { type: "button", class: "clear", onclick: () => {
    for (const { write } of fields) write("");
    apply();
  } }, "Clear filters");
  const form = el("form", { class: "filters", role: "search", "aria-label": "Filters" },
    el("div", { class: "fields" }, el("span", { class: "caption", "aria-hidden": "true" }, "Show only"), ...usual, clear), more);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  return {
    element: form,
    arrive(address) {
      let used = false;
      for (const { filter, write, element } of fields) {
        const value = address.get(filter.name) ?? "";
        if (!element.contains(document.activeElement) || !value) write(value);
        used ||= Boolean(value);
        if (value && filter.more) more.open = true;
      }
      clear.hidden = !used;
    },
  };
}

function field({ name, label, kind, options, hint }) {
  if (kind === "checks") {
    const boxes = options.map(([value, title]) => el("input", { type: "checkbox", name, value, "aria-label": title }));
    const element = el("fieldset", { class: "field checks" }, el("legend", {}, label),
      ...options.map(([, title], index) => el("label", {}, boxes[index], " ", title)));
    return {
      element,
      read: () => boxes.filter((it) => it.checked).map((it) => it.value).join(","),
      write: (value) => boxes.forEach((it) => (it.checked = words(value.toUpperCase()).includes(it.value))),
    };
  }
  let input;
  if (kind === "choice") {
    input = el("select", { name }, ...options.map(([value, title]) => el("option", { value }, title)));
  } else if (kind === "time") {
    input = el("input", { name, type: "datetime-local", step: "1" });
  } else {
    input = el("input", { name, type: "text", autocomplete: "off", spellcheck: "false", placeholder: hint ?? "" });
  }
  return {
    element: el("label", { class: "field" }, el("span", {}, label), input),
    read: () => (kind === "time" && input.value ? `${input.value.length === 16 ? `${input.value}:00` : input.value}Z` : input.value.trim()),
    write: (value) => {
      const shown = kind === "time" ? value.replace("Z", "") : value;
      if (input.value !== shown) input.value = shown;
    },
  };
}

/** How many there are, and what can be done with them: curl, JSON, CSV. */
export function toolbar({ word, columns, shown, curl }) {
  const count = el("p", { class: "count", "aria-live": "off" });
  const button = (title, onclick, label) => el("button", { type: "button", onclick, "aria-label": label }, title);
  const element = el("div", { class: "toolbar" }, count, el("div", { class: "tools" },
    button("Show as curl", () => showCurl("This view as a command", curl())),
    button("JSON", () => download(`${word}s.json`, "application/json", JSON.stringify(shown(), null, 2)), "Download what is shown as JSON"),
    button("CSV", () => download(`${word}s.csv`, "text/csv", csv(columns, shown())), "Download what is shown as CSV")));
  return { element, show: (total) => text(count, total === null ? "" : counted(total, word)) };
}

/** The command of an action or a view, to be copied. */
export function showCurl(title, command) {
  const said = el("span", { role: "status" });
  const copy = el("button", { type: "button", class: "main", onclick: async () => {
    try {
      await navigator.clipboard.writeText(command);
      text(said, "Copied.");
    } catch {
      getSelection().selectAllChildren(box.querySelector("pre"));
      text(said, "Selected: copy it with your keyboard.");
    }
  } }, "Copy");
  const box = dialog(title, el("pre", { tabindex: "0", "aria-label": "Command" }, command),
    el("div", { class: "buttons" }, said, copy, el("button", { type: "button", onclick: () => box.close() }, "Close")));
  box.showModal();
  copy.focus();
}

/** A dialog that is gone once it is closed. */
export function dialog(title, ...children) {
  const heading = el("h2", { id: "dialog-title" }, title);
  const box = el("dialog", { "aria-labelledby": "dialog-title" }, heading, ...children);
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  return box;
}

/** Which part of all is shown, and the way to the others. */
export function pager(sizes, go) {
  const words = el("p", { class: "range" });
  let page = 0;
  const turn = (step) => (event) => {
    // Not `disabled`, which would take the focus away.
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    go({ page: page + step === 0 ? null : String(page + step + 1) });
  };
  const before = el("button", { type: "button", onclick: turn(-1) }, "‹ Previous");
  const after = el("button", { type: "button", onclick: turn(1) }, "Next ›");
  const size = el("select", { "aria-label": "Rows on a page", onchange: () => go({ size: size.value, page: null }) },
    ...sizes.offered.map((it) => el("option", { value: it }, `${it} rows`)));
  const element = el("nav", { class: "pager", "aria-label": "Pages" }, words, before, after, size);
  return {
    element,
    show(pagination, total) {
      page = pagination.page;
      if (![...size.options].some((it) => Number(it.value) === pagination.size)) {
        size.append(el("option", { value: pagination.size }, `${pagination.size} rows`));
      }
      if (document.activeElement !== size) size.value = String(pagination.size);
      const first = page * pagination.size;
      text(words, total ? `${(first + 1).toLocaleString("en-GB")}–${Math.min(first + pagination.size, total).toLocaleString("en-GB")} of ${total.toLocaleString("en-GB")}` : "");
      if (total && first >= total) text(words, `Page ${page + 1} is beyond the last of ${total.toLocaleString("en-GB")}`);
      attribute(before, "aria-disabled", String(page === 0));
      attribute(after, "aria-disabled", String(first + pagination.size >= total));
    },
  };
}

/**
 * A table's head, whose sortable headings change the address. `by` says what a column is sorted by
 * if that is not what it shows.
 */
export function head(columns, go) {
  const cells = columns.map(({ title, sort, by, hidden, first }) => {
    const inside = sort
      ? el("button", { type: "button", class: "sort", onclick: () => {
          const turned = cell.getAttribute("aria-sort");
          const direction = turned === "ascending" ? "DESC" : turned === "descending" ? "ASC" : (first ?? "ASC");
          go({ sort, direction, page: null });
        } }, by ?? title)
      : hidden ? el("span", { class: "unseen" }, title) : title;
    const cell = el("th", { role: "columnheader", scope: "col" }, by ? `${title} ` : null, inside);
    if (sort) cell.dataset.sort = sort;
    return cell;
  });
  return {
    element: el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells)),
    show({ sortField, direction }) {
      for (const cell of cells) {
        const sorted = cell.dataset.sort === sortField;
        attribute(cell, "aria-sort", sorted ? (direction.toUpperCase() === "ASC" ? "ascending" : "descending") : null);
      }
    },
  };
}

/** A cell, with its heading for narrow screens. */
export function cell(label, ...children) {
  return el("td", { role: "cell", "data-label": label }, ...children);
}
