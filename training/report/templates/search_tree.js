// The explorable search tree of the report. It loads nothing, keeps nothing and writes text only
// as text: what a model wrote never becomes markup.
(() => {
  "use strict";
  const TERMINAL = 1, BEST_PATH = 2, NEUTRAL_SCORE = 4;
  const COLUMN = 236, ROW = 46, MARGIN = 26;
  const byId = (id) => document.getElementById(id);
  const root = byId("explorer"), source = byId("explorer-data");
  if (!root || !source) return;
  const data = JSON.parse(source.textContent);
  const svg = byId("explorer-tree"), card = byId("explorer-node"), picker = byId("explorer-patient");
  const rows = byId("tree-rows"), list = byId("tree-list");
  const number = (value, digits = 2) => (value === null ? "\u2013" : value.toFixed(digits));

  function element(tag, properties, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function drawn(tag, attributes, ...children) {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function short(text, most) {
    const line = text.replace(/\s+/gu, " ").trim();
    const characters = Array.from(line);
    return characters.length <= most ? line : characters.slice(0, most - 1).join("") + "\u2026";
  }

  // ---- one tree ----
  let tree, current, hidden, view, layer;

  function readTree([patient, listed]) {
    const nodes = listed.map(([parent, question, answer, visits, value, usefulness, flags, reward, parts], index) => ({
      index, parent, question, answer, visits, value, usefulness, reward, parts: parts || null,
      isTerminal: Boolean(flags & TERMINAL), isBest: Boolean(flags & BEST_PATH),
      isNeutral: Boolean(flags & NEUTRAL_SCORE), children: [], depth: 0, x: 0, y: 0,
    }));
    for (const node of nodes) {
      if (node.parent === null) continue;
      node.parent = nodes[node.parent];
      node.parent.children.push(node);
      node.depth = node.parent.depth + 1;
    }
    return { patient, nodes, root: nodes[0] };
  }

  const bestFinal = () => tree.nodes.filter((node) => node.isBest).pop() || tree.root;
  const isCollapsed = (node) => node.children.length > 0 && hidden.has(node);
  const shownChildren = (node) => isCollapsed(node) ? []
    : node.children.filter((child) => child.visits || byId("explorer-unvisited").checked);

  function mostUseful(nodes) {
    return nodes.filter((node) => node.usefulness !== null)
      .reduce((best, node) => (best === null || node.usefulness > best.usefulness ? node : best), null);
  }

  function visible() {
    const found = [], waiting = [tree.root];
    while (waiting.length) {
      const node = waiting.pop();
      found.push(node);
      waiting.push(...shownChildren(node).reverse());
    }
    return found;
  }

  function place(nodes) {
    let row = 0;
    for (const node of nodes) {
      node.x = MARGIN + COLUMN * node.depth;
      if (!shownChildren(node).length) node.y = MARGIN + ROW * row++;
    }
    for (const node of [...nodes].reverse()) {
      const children = shownChildren(node);
      if (children.length) node.y = (children[0].y + children[children.length - 1].y) / 2;
    }
    const deepest = Math.max(...nodes.map((node) => node.depth));
    return { width: 2 * MARGIN + COLUMN * deepest + 210, height: 2 * MARGIN + ROW * Math.max(row - 1, 0) + 14 };
  }

  // ---- drawing ----
  function colour(node) {
    if (!node.visits) return "#fff";
    const share = node.value === null ? 0 : 1 / (1 + Math.exp(-2 * node.value));
    return "rgb(" + [[214, 16], [226, 60], [240, 116]].map(([a, b]) => Math.round(a + (b - a) * share)).join(",") + ")";
  }

  function facts(node) {
    const parts = ["#" + node.index];
    if (node.visits) parts.push("n " + node.visits);
    if (node.isTerminal && node.reward !== null) parts.push(data.letter + " " + number(node.reward));
    else if (node.value !== null) parts.push("Q " + number(node.value));
    if (node.usefulness !== null && node.depth) parts.push("r " + number(node.usefulness) + (node.isNeutral ? "?" : ""));
    return parts.join("  ");
  }

  function kind(node) {
    if (!node.depth) return "the case";
    if (!node.isTerminal) return "question, step " + node.depth;
    return (node.usefulness === null ? "forced final" : "final") + ", step " + node.depth;
  }

  function edge(node, child) {
    const bend = child.x - 0.28 * COLUMN;
    return drawn("path", {
      d: `M${node.x} ${node.y}H${bend - 10}C${bend + 16} ${node.y} ${bend + 4} ${child.y} ${child.x} ${child.y}`,
      class: child.isBest ? "edge best" : "edge",
    });
  }

  function mark(node) {
    const radius = 5 + 5 * Math.sqrt(node.visits / Math.max(tree.root.visits, 1));
    const hasMore = shownChildren(node).length > 0;
    const group = drawn("g", {
      id: "node-" + node.index, class: "node" + (node.isBest ? " best" : "") + (node.visits ? "" : " unvisited"),
      role: "treeitem", "data-node": node.index, "aria-level": node.depth + 1,
      "aria-label": `${kind(node)}: ${facts(node)}. ${short(node.question, 160)}`,
    });
    if (node.children.length) group.setAttribute("aria-expanded", String(!isCollapsed(node)));
    group.append(drawn("circle", { class: "ring", cx: node.x, cy: node.y, r: radius + 5 }));
    group.append(node.isTerminal
      ? drawn("rect", { x: node.x - radius, y: node.y - radius, width: 2 * radius, height: 2 * radius, rx: 2, fill: colour(node) })
      : drawn("circle", { cx: node.x, cy: node.y, r: radius, fill: colour(node) }));
    const left = node.x + radius + 5;
    const top = hasMore ? node.y - 6 : node.y - 2;
    group.append(drawn("text", { x: left, y: top, class: "halo" }, facts(node)));
    const question = short(node.question, 25);
    if (question) group.append(drawn("text", { x: left, y: hasMore ? node.y + 14 : node.y + 12, class: "halo said" }, question));
    if (isCollapsed(node)) {
      const count = "+" + below(node);
      group.append(drawn("g", { class: "more", "data-toggle": node.index },
        drawn("rect", { x: left, y: node.y + (question ? 17 : 3), width: 12 + 7 * count.length, height: 16, rx: 8 }),
        drawn("text", { x: left + 6, y: node.y + (question ? 29 : 15) }, count)));
    }
    return group;
  }

  const below = (node) => node.children.reduce((sum, child) => sum + 1 + below(child), 0);

  let size = { width: 1, height: 1 };
  function draw() {
    const nodes = visible();
    if (!nodes.includes(current)) current = nearestShown(current, nodes);
    size = place(nodes);
    const edges = nodes.flatMap((node) => shownChildren(node).map((child) => [node, child]));
    edges.sort((a, b) => a[1].isBest - b[1].isBest);
    layer = drawn("g", {}, ...edges.map(([node, child]) => edge(node, child)), ...nodes.map(mark));
    svg.replaceChildren(layer);
    move();
    choose(current);
  }

  function nearestShown(node, nodes) {
    let at = node;
    while (at && !nodes.includes(at)) at = at.parent;
    return at || tree.root;
  }

  function choose(node, follow = false) {
    current = node;
    for (const item of layer.querySelectorAll(".node")) {
      const isChosen = Number(item.dataset.node) === node.index;
      item.classList.toggle("chosen", isChosen);
      item.setAttribute("aria-selected", String(isChosen));
    }
    svg.setAttribute("aria-activedescendant", "node-" + node.index);
    describe(node);
    if (follow) reveal(node);
  }

  // ---- the chosen node in words ----
  function describe(node) {
    const siblings = node.parent ? node.parent.children : [];
    const winner = mostUseful(siblings);
    const remarks = [];
    if (node.isBest && node.depth) remarks.push("on the path to the best final");
    if (!node.visits) remarks.push("never visited");
    if (node.isNeutral) remarks.push("score unreadable, 50 of 100 stands for it");
    if (node.isTerminal && node.usefulness !== null && winner && !winner.isTerminal) remarks.push("lost the usefulness vote to #" + winner.index);
    else if (siblings.length > 1 && winner === node) remarks.push("won the usefulness vote");
    if (node.parts && node.parts.kept) remarks.push(data.kept);
    if (node.parts && !node.parts.readable) remarks.push("unreadable");
    const pairs = [["Visits n", `${node.visits} of ${tree.root.visits}`], ["Q", number(node.value, 3)]];
    if (node.depth) pairs.push(["Usefulness r", node.usefulness === null ? "not scored" : number(node.usefulness)]);
    if (node.isTerminal) pairs.push([data.letter, number(node.reward, 3)]);
    if (node.parts) {
      if (node.parts.cls !== null) pairs.push(["R_cls", number(node.parts.cls, 3)]);
      pairs.push(["R_att", number(node.parts.att, 3)], ["Probability", number(node.parts.probability)]);
    }
    const path = [];
    for (let at = node; at; at = at.parent) path.unshift(at);
    const trail = element("p", { className: "trail" });
    path.forEach((at, index) => {
      if (index) trail.append(" \u203a ");
      trail.append(at === node ? element("b", {}, "#" + at.index)
        : element("button", { type: "button", title: short(at.question, 200), onclick: () => choose(at, true) }, "#" + at.index));
    });
    card.replaceChildren(
      trail,
      element("h4", {}, `#${node.index}: ${kind(node)}`),
      element("ul", { className: "chips" }, ...remarks.map((remark) => element("li", {}, remark))),
      element("dl", { className: "facts" }, ...pairs.map(([label, value]) =>
        element("div", {}, element("dt", {}, label), element("dd", {}, value)))),
      ...said("Question", node.question),
      ...said(node.isTerminal ? "Written as the final" : "Answer", node.answer),
    );
    if (!node.depth) card.append(element("p", { className: "note" }, "The patient's record as the prompt shows it; every path starts here."));
    if (node.parts && node.parts.features.length) {
      card.append(element("p", { className: "note" }, "Features, as understood"),
        element("ul", { className: "chips" }, ...node.parts.features.map((name) => element("li", { dir: "auto" }, name))));
    }
  }

  function said(label, text) {
    if (!text) return [];
    return [element("div", { className: "model-text" },
      element("p", {}, element("em", {}, label), element("span", { dir: "auto" }, text)))];
  }

  // ---- the list of all nodes ----
  function fillList() {
    if (!rows || !list || !list.open || list.dataset.tree === String(picker.selectedIndex)) return;
    list.dataset.tree = picker.selectedIndex;
    rows.replaceChildren(...tree.nodes.slice(1).map((node) => element("tr", {},
      element("th", { scope: "row" }, element("button", { type: "button", className: "plain", onclick: () => show(node) }, "#" + node.index), node.isBest ? " \u2605" : ""),
      element("td", {}, String(node.depth)),
      element("td", { className: "prose", dir: "auto" }, node.question),
      element("td", { className: "prose lines", dir: "auto" }, node.answer),
      element("td", {}, String(node.visits)), element("td", {}, number(node.value)),
      element("td", {}, number(node.usefulness)), element("td", {}, number(node.reward)))));
  }

  function unfoldTo(node) {
    for (let at = node.parent; at; at = at.parent) hidden.delete(at);
    if (!node.visits) byId("explorer-unvisited").checked = true;
    current = node;
    draw();
    reveal(node);
  }

  function show(node) {
    unfoldTo(node);
    root.scrollIntoView({ block: "start" });
    svg.focus({ preventScroll: true });
  }

  // ---- moving about ----
  function move() {
    layer.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
  }

  function zoom(factor, x = svg.clientWidth / 2, y = svg.clientHeight / 2) {
    const scale = Math.min(3, Math.max(0.1, view.scale * factor));
    view.x = x - (x - view.x) * scale / view.scale;
    view.y = y - (y - view.y) * scale / view.scale;
    view.scale = scale;
    move();
  }

  function fit(least) {
    const scale = Math.max(least, Math.min(1, svg.clientWidth / size.width, svg.clientHeight / size.height));
    const spare = svg.clientHeight - size.height * scale;
    // where not all of it fits, the root is in the middle
    const y = spare >= 0 ? spare / 2 : Math.min(0, Math.max(spare, svg.clientHeight / 2 - tree.root.y * scale));
    view = { x: 0, y, scale };
    move();
  }

  function reveal(node) {
    const x = view.x + node.x * view.scale, y = view.y + node.y * view.scale;
    const right = svg.clientWidth - Math.min(210 * view.scale, svg.clientWidth / 2);
    view.x += Math.min(0, right - x) + Math.max(0, MARGIN - x);
    view.y += Math.min(0, svg.clientHeight - 40 - y) + Math.max(0, 30 - y);
    move();
  }

  function toggle(node) {
    if (!node.children.length) return;
    if (hidden.has(node)) hidden.delete(node);
    else hidden.add(node);
    current = node;
    draw();
    reveal(node);
  }

  function bestPathOnly() {
    hidden = new Set(tree.nodes.filter((node) => node.children.length && !node.isBest));
    current = bestFinal();
    draw();
    fit(0.8);
    reveal(current);
  }

  const keys = {
    ArrowRight: () => { if (isCollapsed(current)) toggle(current); else if (shownChildren(current).length) choose(shownChildren(current)[0], true); },
    ArrowLeft: () => { if (current.parent) choose(current.parent, true); },
    ArrowUp: () => beside(-1),
    ArrowDown: () => beside(1),
    Home: () => choose(tree.root, true),
    End: () => unfoldTo(bestFinal()),
    Enter: () => toggle(current),
    " ": () => toggle(current),
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    0: () => fit(0.1),
    PageDown: () => step(1),
    PageUp: () => step(-1),
  };

  function beside(direction) {
    const level = visible().filter((node) => node.depth === current.depth).sort((a, b) => a.y - b.y);
    const next = level[level.indexOf(current) + direction];
    if (next) choose(next, true);
  }

  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });

  const pointers = new Map();
  let hasMoved = false;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (!pointers.size) hasMoved = false;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, startX: event.clientX, startY: event.clientY });
  });
  svg.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    if (!pointer) return;
    if (!hasMoved && Math.hypot(event.clientX - pointer.startX, event.clientY - pointer.startY) < 5) return;
    if (!hasMoved) {
      hasMoved = true;
      svg.setPointerCapture(event.pointerId);
    }
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    if (others.length) {
      const box = svg.getBoundingClientRect(), other = others[0];
      const before = Math.hypot(pointer.x - other.x, pointer.y - other.y);
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      if (before > 0) zoom(after / before, other.x - box.left, other.y - box.top);
    } else {
      view.x += event.clientX - pointer.x;
      view.y += event.clientY - pointer.y;
      move();
    }
    pointer.x = event.clientX;
    pointer.y = event.clientY;
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    svg.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  svg.addEventListener("click", (event) => {
    if (hasMoved) return;
    const more = event.target.closest("[data-toggle]"), item = event.target.closest("[data-node]");
    if (more) toggle(tree.nodes[Number(more.dataset.toggle)]);
    else if (item) choose(tree.nodes[Number(item.dataset.node)]);
  });
  svg.addEventListener("dblclick", (event) => {
    const item = event.target.closest("[data-node]");
    if (item) toggle(tree.nodes[Number(item.dataset.node)]);
  });
  svg.addEventListener("wheel", (event) => {
    // a wheel by itself scrolls the page; a pinch on a touch pad comes as a wheel with ctrl
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 200), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });

  // ---- patients ----
  function open(index) {
    tree = readTree(data.trees[index]);
    hidden = new Set();
    view = { x: 0, y: 0, scale: 1 };
    current = bestFinal();
    picker.selectedIndex = index;
    byId("explorer-previous").disabled = index === 0;
    byId("explorer-next").disabled = index === data.trees.length - 1;
    draw();
    svg.style.height = Math.min(560, Math.max(240, size.height + 20)) + "px";
    fit(0.8);
    fillList();
  }

  function step(by) {
    const index = picker.selectedIndex + by;
    if (index >= 0 && index < data.trees.length) open(index);
  }

  picker.append(...data.trees.map(([patient, nodes]) => {
    const rewards = nodes.map((node) => node[7]).filter((reward) => reward !== null);
    const best = rewards.length ? `, best ${data.letter} ${Math.max(...rewards).toFixed(2)}` : "";
    return element("option", {}, `${patient} (${nodes.length} nodes${best})`);
  }));
  picker.addEventListener("change", () => open(picker.selectedIndex));
  byId("explorer-previous").addEventListener("click", () => step(-1));
  byId("explorer-next").addEventListener("click", () => step(1));
  byId("explorer-unvisited").addEventListener("change", () => draw());
  byId("explorer-best").addEventListener("click", bestPathOnly);
  byId("explorer-all").addEventListener("click", () => { hidden.clear(); draw(); fit(0.1); });
  byId("explorer-in").addEventListener("click", () => zoom(1.25));
  byId("explorer-out").addEventListener("click", () => zoom(0.8));
  byId("explorer-fit").addEventListener("click", () => fit(0.1));
  if (list) list.addEventListener("toggle", fillList);
  root.hidden = false;
  byId("tree-static").hidden = true;
  try {
    open(data.first);
  } catch (error) {
    root.hidden = true;
    byId("tree-static").hidden = false;
    throw error;
  }
})();
