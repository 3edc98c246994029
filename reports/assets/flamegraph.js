"use strict";
// Flame graphs from flat lists (reports/elements/flamegraph.py). Frames are plain elements: they carry their
// names, take the focus, and print. Only what is wide enough to be seen is made.
(function () {
  var dataBox = document.getElementById("flame-data");
  if (!dataBox) { return; }
  var data = JSON.parse(dataBox.textContent);
  var ROW = 21, CHARACTER_PX = 6.6;
  var MIN_PX = 1.5; // one pixel is the gap between frames
  var detail = document.getElementById("flame-detail");
  var search = document.getElementById("flame-search");
  var found = document.getElementById("flame-found");
  var processSelect = document.getElementById("flame-process");
  var windowSelect = document.getElementById("flame-window");
  var wide = document.getElementById("flame-wide");
  var hint = detail.textContent;
  var panes = [];

  function buildNodes(lists) {
    var nodes = [], path = [];
    for (var i = 0; i < lists.depth.length; i++) {
      var depth = lists.depth[i];
      var node = { name: data.names[lists.name[i]], depth: depth, total: lists.total[i], window: lists.window[i], rest: lists.total[i] - lists.window[i], children: [], parent: null };
      if (depth > 0) { node.parent = path[depth - 1]; node.parent.children.push(node); }
      path[depth] = node;
      nodes.push(node);
    }
    return nodes;
  }
  function isKernel(name) { return name.slice(-4) === "_[k]"; }
  function isMapped(name) { return name.slice(-4) === "_[j]"; } // from the runtime's perf map
  function shown(name) { return isKernel(name) || isMapped(name) ? name.slice(0, -4) : name; }
  function kindOf(node, source) {
    if (node.depth === 0 || /^\((?!anonymous namespace)/.test(node.name)) { return "other"; }
    if (isMapped(node.name) || source === "python") { return "runtime"; }
    return isKernel(node.name) ? "kernel" : source;
  }
  function percent(part, whole) { return (whole ? part / whole * 100 : 0).toFixed(1) + " %"; }
  function value(node) { return node[windowSelect.value]; }
  // Where a name is too long, its namespaces or import path go first: what tells functions apart is
  // the end of v8::internal::Heap::CollectGarbage, but the begin of turn (/srv/server.js:10).
  function fitted(name, px) {
    if (name.length * CHARACTER_PX > px) { name = name.replace("(anonymous namespace)::", ""); }
    var own = name.search(/[< ]/) < 0 ? name.length : name.search(/[< ]/);
    while (name.length * CHARACTER_PX > px) {
      var at = name.slice(0, own).search(/::|\/|\.(?=\w+[.\w]*::)/);
      if (at < 0) { break; }
      var cut = at + (name.substr(at, 2) === "::" ? 2 : 1);
      name = name.slice(cut);
      own -= cut;
    }
    return name;
  }

  function Pane(box, source) {
    this.box = box;
    this.source = source;
    this.area = box.querySelector(".flame");
    this.area.setAttribute("role", "tree");
    this.area.setAttribute("aria-label", box.querySelector("h4").textContent);
    this.nodes = [];
    this.zoomed = null;
    this.area.addEventListener("click", this.onClick.bind(this));
    this.area.addEventListener("keydown", this.onKey.bind(this));
    this.area.addEventListener("mouseover", this.onPoint.bind(this));
    this.area.addEventListener("focusin", this.onPoint.bind(this));
    this.area.addEventListener("mouseleave", function () { detail.textContent = hint; });
  }
  Pane.prototype.load = function (lists) {
    this.box.hidden = !lists;
    this.nodes = lists ? buildNodes(lists) : [];
    this.zoomed = this.nodes[0] || null;
    this.draw();
  };
  Pane.prototype.describe = function (node) {
    var root = value(this.nodes[0]), below = 0;
    node.children.forEach(function (c) { below += value(c); });
    return shown(node.name) + (isKernel(node.name) ? " (kernel)" : "") + ": " + percent(value(node), root) + " of samples (" +
      value(node).toLocaleString("en") + " of " + root.toLocaleString("en") + "), itself " + percent(value(node) - below, root);
  };
  Pane.prototype.draw = function (focusNode) {
    var pane = this, query = search.value.trim().toLowerCase(), deepest = 0;
    var width = this.area.clientWidth || 600;
    this.area.replaceChildren();
    if (!this.zoomed) { return; }
    if (!value(this.nodes[0])) {
      this.area.style.height = "3em";
      var none = document.createElement("p");
      none.className = "note";
      none.textContent = "No sample in this window.";
      this.area.setAttribute("role", "group");
      this.area.append(none);
      return;
    }
    this.area.setAttribute("role", "tree");
    var made = document.createDocumentFragment();
    function place(node, left, share) {
      if (share * width < MIN_PX) { return; }
      deepest = Math.max(deepest, node.depth);
      var element = document.createElement("div");
      var hit = query && node.name.toLowerCase().indexOf(query) >= 0;
      element.className = "frame k-" + kindOf(node, pane.source) + (hit ? " hit" : "") +
        (node.depth < pane.zoomed.depth ? " above" : "") + (share * width < 8 ? " thin" : "");
      element.style.left = (left * 100) + "%";
      element.style.width = (share * 100) + "%";
      element.style.top = (node.depth * ROW) + "px";
      if (share * width >= 20) { element.textContent = fitted(shown(node.name), share * width); }
      element.setAttribute("role", "treeitem");
      element.setAttribute("aria-level", String(node.depth + 1));
      element.setAttribute("aria-label", pane.describe(node));
      element.tabIndex = node === (focusNode || pane.zoomed) ? 0 : -1;
      element.node = node;
      node.element = element;
      made.append(element);
    }
    this.nodes.forEach(function (node) { node.element = null; });
    for (var above = this.zoomed.parent; above; above = above.parent) { place(above, 0, 1); }
    (function walk(node, left, share) {
      place(node, left, share);
      var at = left;
      node.children.forEach(function (child) {
        var part = value(node) ? share * value(child) / value(node) : 0;
        if (part * width >= MIN_PX) { walk(child, at, part); }
        at += part;
      });
    })(this.zoomed, 0, 1);
    this.area.append(made);
    this.area.style.height = ((deepest + 1) * ROW) + "px";
    if (focusNode && focusNode.element) { focusNode.element.focus(); }
  };
  Pane.prototype.zoom = function (node, keepFocus) {
    this.zoomed = node;
    this.draw(keepFocus ? node : null);
    detail.textContent = this.describe(node);
  };
  Pane.prototype.onClick = function (event) {
    var node = event.target.node;
    if (node) { this.zoom(node, true); }
  };
  Pane.prototype.onPoint = function (event) {
    if (event.target.node) { detail.textContent = this.describe(event.target.node); }
  };
  Pane.prototype.onKey = function (event) {
    var node = event.target.node;
    if (!node) { return; }
    var next = null;
    if (event.key === "Enter" || event.key === " ") { this.zoom(node, true); event.preventDefault(); return; }
    if (event.key === "Escape") { this.zoom(this.nodes[0], true); event.preventDefault(); return; }
    if (event.key === "ArrowUp") { next = node.parent; }
    if (event.key === "ArrowDown") { next = node.children.find(function (c) { return c.element; }); }
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      var row = node.parent ? node.parent.children.filter(function (c) { return c.element; }) : [node];
      next = row[row.indexOf(node) + (event.key === "ArrowLeft" ? -1 : 1)];
    }
    if (event.key === "Home") { next = this.nodes[0]; }
    if (next && next.element) {
      node.element.tabIndex = -1;
      next.element.tabIndex = 0;
      next.element.focus();
    }
    if (/^(Arrow|Home)/.test(event.key)) { event.preventDefault(); }
  };

  function drawAll() {
    panes.forEach(function (pane) { pane.draw(); });
    var query = search.value.trim().toLowerCase();
    if (!query) { found.textContent = ""; return; }
    var parts = panes.filter(function (p) { return p.nodes.length; }).map(function (pane) {
      var matched = 0, frames = 0;
      (function walk(node) {
        if (node.name.toLowerCase().indexOf(query) >= 0) { matched += value(node); frames += 1; return; }
        node.children.forEach(walk);
      })(pane.nodes[0]);
      return pane.source + " " + percent(matched, value(pane.nodes[0])) + (frames ? "" : " (no match)");
    });
    found.textContent = "Found in: " + parts.join(", ");
  }
  function loadProcess() {
    var process = data.processes[processSelect.selectedIndex];
    var both = process.python && process.native;
    document.querySelector(".flame-pair").classList.toggle("single", !both);
    wide.hidden = !both;
    panes.forEach(function (pane) { pane.load(process[pane.source]); });
    drawAll();
  }

  data.processes.forEach(function (process) {
    var option = document.createElement("option");
    option.textContent = (process.hot ? "hot: " : "") + process.label + ", " + process.samples.toLocaleString("en") + " samples";
    processSelect.append(option);
  });
  document.querySelector(".flame-app").hidden = false;
  panes = ["python", "native"].map(function (source) { return new Pane(document.getElementById("flame-" + source), source); });
  var anyWindow = data.processes.some(function (p) {
    return ["python", "native"].some(function (s) { return p[s] && p[s].window[0] > 0; });
  });
  windowSelect.parentElement.hidden = !anyWindow;
  processSelect.addEventListener("change", loadProcess);
  windowSelect.addEventListener("change", drawAll);
  search.addEventListener("input", drawAll);
  search.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { search.value = ""; drawAll(); }
  });
  wide.addEventListener("click", function () {
    var on = document.querySelector(".flame-pair").classList.toggle("stacked");
    wide.setAttribute("aria-pressed", String(on));
    panes.forEach(function (pane) { pane.draw(); });
  });
  document.getElementById("flame-reset").addEventListener("click", function () {
    panes.forEach(function (pane) { if (pane.nodes.length) { pane.zoomed = pane.nodes[0]; pane.draw(); } });
    detail.textContent = hint;
  });
  document.addEventListener("keydown", function (event) {
    var inField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !inField && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
    }
  });
  var waiting = 0;
  window.addEventListener("resize", function () {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(function () { panes.forEach(function (pane) { pane.draw(); }); });
  });
  loadProcess();
})();
