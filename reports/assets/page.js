"use strict";
// Copy buttons, sortable and foldable tables, and which section is in view. No framework.
(function () {
  var announceBox = document.getElementById("announce");
  function announce(text) { announceBox.textContent = text; }

  function copyText(text) {
    if (navigator.clipboard && window.isSecureContext) {
      return navigator.clipboard.writeText(text);
    }
    // Opened from a place that browsers do not trust with the clipboard API.
    var area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.appendChild(area);
    area.select();
    var done = document.execCommand("copy");
    area.remove();
    return done ? Promise.resolve() : Promise.reject(new Error("copy was refused"));
  }
  document.querySelectorAll("button.copy").forEach(function (button) {
    button.addEventListener("click", function () {
      var code = button.parentElement.querySelector("code");
      var text = code.textContent;
      function say(word) { // the name that is spoken begins with the word that is seen
        button.textContent = word;
        button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^[^:]*/, word));
      }
      copyText(text).then(
        function () { say("Copied"); announce("Copied: " + text); },
        function () { say("Select it"); window.getSelection().selectAllChildren(code); }
      );
      setTimeout(function () { say("Copy"); }, 2000);
    });
  });

  function sortValue(row, index) {
    var cell = row.cells[index];
    var raw = cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
    var number = Number(raw);
    return raw !== "" && !Number.isNaN(number) ? number : raw;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }
  function refold(table) {
    var limit = Number(table.dataset.fold || 0);
    if (!limit) { return; }
    Array.from(table.tBodies[0].rows).forEach(function (row, number) {
      row.classList.toggle("folded", table.dataset.open !== "1" && number >= limit);
    });
  }
  document.querySelectorAll("table").forEach(function (table) {
    var rowCount = table.tBodies[0].rows.length;
    if (rowCount > 1) {
      Array.from(table.tHead.rows[0].cells).forEach(function (head, index) {
        var label = head.querySelector(".label");
        var button = document.createElement("button");
        button.type = "button";
        button.className = "sort";
        button.textContent = label.textContent;
        label.replaceChildren(button);
        button.addEventListener("click", function () {
          var isNumber = head.classList.contains("number");
          var was = head.getAttribute("aria-sort");
          var down = was ? was === "ascending" : isNumber;
          Array.from(table.tHead.rows[0].cells).forEach(function (other) { other.removeAttribute("aria-sort"); });
          head.setAttribute("aria-sort", down ? "descending" : "ascending");
          var rows = Array.from(table.tBodies[0].rows);
          rows.sort(function (a, b) { return compare(sortValue(a, index), sortValue(b, index)) * (down ? -1 : 1); });
          table.tBodies[0].append.apply(table.tBodies[0], rows);
          refold(table);
          announce("Sorted by " + button.textContent + (down ? ", largest first" : ", smallest first"));
        });
      });
    }
    if (table.dataset.fold) {
      refold(table);
      var more = document.createElement("button");
      more.type = "button";
      more.className = "more";
      more.setAttribute("aria-expanded", "false");
      more.textContent = "Show all " + rowCount + " rows";
      more.addEventListener("click", function () {
        var open = table.dataset.open !== "1";
        table.dataset.open = open ? "1" : "";
        more.setAttribute("aria-expanded", String(open));
        more.textContent = open ? "Show the first " + table.dataset.fold : "Show all " + rowCount + " rows";
        refold(table);
      });
      table.parentElement.after(more);
    }
  });

  // A link to something inside a fold opens the fold.
  function reveal() {
    var target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) { return; }
    for (var node = target; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") { node.open = true; }
    }
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  reveal();
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details:not([open])").forEach(function (d) { d.open = true; d.dataset.printed = "1"; });
  });
  window.addEventListener("afterprint", function () {
    document.querySelectorAll("details[data-printed]").forEach(function (d) { d.open = false; delete d.dataset.printed; });
  });

  var links = new Map();
  document.querySelectorAll("nav a").forEach(function (link) { links.set(link.hash.slice(1), link); });
  if ("IntersectionObserver" in window) {
    var observer = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (!entry.isIntersecting) { return; }
        links.forEach(function (link) { link.removeAttribute("aria-current"); });
        links.get(entry.target.id).setAttribute("aria-current", "true");
      });
    }, { rootMargin: "-20% 0px -70% 0px" });
    links.forEach(function (_link, id) { observer.observe(document.getElementById(id)); });
  }
})();
