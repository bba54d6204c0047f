"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
// Text is only ever set as text: names come from the program that was looked at.
function make(tag, kind, text) {
  const e = document.createElement(tag);
  if (kind) e.className = kind;
  if (text !== undefined) e.textContent = text;
  return e;
}
function bytes(n) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1000) return (unit === "B" ? n : n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)) + " " + unit;
    n /= 1024;
  }
  return n.toFixed(2) + " TiB";
}
const count = n => n.toLocaleString("en-US");
const percent = n => whole ? (100 * n / whole).toFixed(1) + " %" : "";
const whole = data.tree[0].retained;

// The retention tree: the children of a node are made when it is opened.
function node(i) {
  const n = data.tree[i], item = make("li"), row = make("div", "row");
  const inner = n.children[1] > n.children[0] || n.rest > 0;
  const toggle = inner ? make("button", "", "▸") : make("span", "leaf", "·");
  row.append(toggle, make("span", "size", bytes(n.retained)), make("span", "size", percent(n.retained)));
  const bar = make("span", "bar"), part = make("i");
  part.style.width = (whole ? 100 * n.retained / whole : 0) + "%";
  bar.append(part);
  const name = make("span", "name");
  if (n.field) name.append(make("span", "field", n.field + "  "));
  name.append(n.name);
  if (n.nodes > 1) name.append(make("span", "times", "  ×" + count(n.nodes)));
  if (n.bytes) name.append(make("span", "times", "  own " + bytes(n.bytes)));
  row.append(bar, name);
  item.append(row);
  if (inner) {
    toggle.setAttribute("aria-expanded", "false");
    toggle.setAttribute("aria-label", "what " + n.name + " retains");
    let list = null;
    toggle.onclick = () => {
      const open = toggle.getAttribute("aria-expanded") !== "true";
      toggle.setAttribute("aria-expanded", String(open));
      toggle.textContent = open ? "▾" : "▸";
      if (!list) {
        list = make("ul");
        for (let c = n.children[0]; c < n.children[1]; c++) list.append(node(c));
        if (n.rest > 0) {
          const rest = make("div", "row");
          rest.append(make("span", "leaf", "…"), make("span", "size", bytes(n.rest)), make("span", "size", percent(n.rest)),
            make("span", "quiet", "in smaller or deeper things that are not listed"));
          const item = make("li");
          item.append(rest);
          list.append(item);
        }
        item.append(list);
      }
      list.hidden = !open;
    };
  }
  item.open = () => inner && toggle.onclick();
  return item;
}
const top_node = node(0);
at("tree").append(top_node);
top_node.open();

// Tables that are sorted by the head one clicks on.
function table(id, columns, rows) {
  const t = at(id);
  if (!t) return;
  let by = columns.findIndex(c => c.first), down = !columns[by].text, wanted = "";
  const head = make("tr"), body = make("tbody"), thead = make("thead");
  columns.forEach((c, i) => {
    const th = make("th", c.text ? "name" : ""), button = make("button", "", c.head);
    button.onclick = () => { down = by === i ? !down : !c.text; by = i; draw(); };
    th.append(button);
    head.append(th);
  });
  thead.append(head);
  t.append(thead, body);
  const draw = () => {
    const key = columns[by].key, sign = down ? -1 : 1;
    const shown = rows.filter(r => !wanted || columns.some(c => c.text && String(r[c.key]).toLowerCase().includes(wanted)));
    shown.sort((a, b) => sign * (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0));
    head.querySelectorAll("th").forEach((th, i) =>
      th.setAttribute("aria-sort", i !== by ? "none" : down ? "descending" : "ascending"));
    body.replaceChildren(...shown.slice(0, 2000).map(r => {
      const tr = make("tr");
      for (const c of columns) tr.append(make("td", c.text ? "name" : "", (c.show || String)(r[c.key])));
      return tr;
    }));
  };
  const filter = at(id + "-filter");
  if (filter) filter.oninput = () => { wanted = filter.value.trim().toLowerCase(); draw(); };
  draw();
}
table("types", [
  { head: "objects", key: "objects", show: count }, { head: "bytes", key: "bytes", show: bytes },
  { head: "retained", key: "retained", show: bytes, first: true }, { head: "dead", key: "dead_bytes", show: bytes },
  { head: "kind", key: "kind", text: true }, { head: "type", key: "name", text: true },
], data.types);
table("roots", [
  { head: "retained", key: "retained", show: bytes, first: true }, { head: "number", key: "nodes", show: count },
  { head: "root", key: "name", text: true },
], data.roots);
table("goroutines", [
  { head: "verdict", key: "verdict", text: true, first: true }, { head: "number", key: "count", show: count },
  { head: "retained", key: "retained", show: bytes },
  { head: "stacks", key: "stack_bytes", show: bytes }, { head: "state", key: "state", text: true },
  { head: "started with", key: "entry", text: true }, { head: "at", key: "started_at", text: true },
], data.goroutines);
