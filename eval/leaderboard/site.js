(() => {
  "use strict";
  const WORDS = { b: "better than", w: "worse than", n: "no significant difference from" };
  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // -- tables: heads become buttons that sort the rows; reference rows of a second body stay where they are

  const setUpSort = table => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows];

    const sort = (head, way) => {
      const at = head.cellIndex;
      const sign = way === "descending" ? -1 : 1;
      const value = row => row.cells[at].dataset.value;
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) {
          return (x === undefined) - (y === undefined) || a.dataset.row - b.dataset.row;
        }
        const way = head.dataset.sort === "number" ? x - y : order.compare(x, y);
        return sign * way || a.dataset.row - b.dataset.row;
      });
      heads.forEach(other => other.setAttribute("aria-sort", other === head ? way : "none"));
      body.append(...rows);
    };

    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const other = { ascending: "descending", descending: "ascending" };
        sort(head, other[now] || head.dataset.first);
      });
    }
    return { heads, rows, sort };
  };

  // -- boards: filter, choose the score and what rows are compared with

  const setUpBoard = board => {
    const { labels, scores } = JSON.parse(board.querySelector(".data").textContent);
    const form = board.querySelector(".controls");
    const table = board.querySelector("table");
    const { heads, rows, sort } = setUpSort(table);
    const cell = (row, key) => row.querySelector("." + key);

    const sentence = (score, i, reference) => {
      const { rank, fair, verdict, said, why } = score;
      if (rank[i] === null) return ["not scored", ""];
      const j = reference === "fair" ? fair[i] : reference === "best" ? rank.indexOf(1) : +reference;
      if (j === null) return ["bits unknown", ""];
      if (j === i) return [{ fair: "best at no more bits", best: "the best row" }[reference] || "the row itself", "self"];
      const letter = verdict[i][j];
      if (letter === " ") return ["not scored for " + labels[j], ""];
      if (WORDS[letter]) return [`${WORDS[letter]} ${labels[j]}: ${said[i][j]}`, letter];
      return [`against ${labels[j]}: ${said[i][j]}, no interval: ${why[letter]}`, ""];
    };

    const compare = () => {
      const score = scores[form.elements.score.value];
      const reference = form.elements.against.value;
      const chosen = form.elements.against.selectedOptions[0].textContent;
      const head = table.tHead.querySelector(".against button");
      head.textContent = "Against " + (reference === "fair" ? "the best at no more bits" : chosen);
      for (const row of rows) {
        const against = cell(row, "against");
        const [text, verdict] = sentence(score, +row.dataset.row, reference);
        against.textContent = text;
        against.dataset.value = text;
        against.dataset.verdict = verdict;
        against.dataset.label = head.textContent.toLowerCase();
      }
    };

    const choose = () => {
      const key = form.elements.score.value;
      for (const part of table.querySelectorAll(".score")) part.classList.toggle("chosen", part.dataset.score === key);
      for (const plot of board.querySelectorAll(".plot")) plot.hidden = plot.dataset.score !== key;
      for (const row of rows) {
        const place = scores[key].rank[row.dataset.row];
        const rank = cell(row, "rank");
        rank.textContent = place === null ? "\u2013" : place;
        if (place === null) delete rank.dataset.value;
        else rank.dataset.value = place;
      }
      compare();
      sort(heads[0], "ascending");
    };

    const filter = () => {
      const { name, kind, family, licence, causal, bits, parameters } = form.elements;
      const words = name.value.toLowerCase().split(/\s+/).filter(Boolean);
      const below = (text, input, unit) => input.value === "" || (text !== "" && +text <= input.value * unit);
      const is = (text, select) => select.value === "" || text === select.value;
      let shown = 0;
      for (const row of rows) {
        const data = row.dataset;
        const fits = words.every(word => data.name.includes(word)) && is(data.kind, kind) && is(data.family, family)
          && is(data.licence, licence) && is(data.causal, causal) && below(data.bits, bits, 1) && below(data.parameters, parameters, 1e6);
        row.hidden = !fits;
        shown += fits;
      }
      form.elements.count.textContent = `${shown} of ${rows.length} rows`;
      const there = new Set(rows.filter(row => !row.hidden).map(row => row.dataset.plot));
      for (const part of board.querySelectorAll(".plot [data-name]")) {
        part.toggleAttribute("hidden", !there.has(part.dataset.name));
      }
    };

    form.addEventListener("submit", event => event.preventDefault());
    form.elements.score?.addEventListener("change", choose);
    form.elements.against.addEventListener("change", compare);
    form.elements.all.addEventListener("change", () => table.classList.toggle("all", form.elements.all.checked));
    for (const key of ["name", "kind", "family", "licence", "causal", "bits", "parameters"]) {
      form.elements[key].addEventListener("input", filter);
    }
    board.querySelector("[data-clear]").addEventListener("click", () => {
      for (const key of ["name", "kind", "family", "licence", "causal", "bits", "parameters"]) form.elements[key].value = "";
      filter();
    });
    form.reset();
    form.hidden = false;
    table.classList.remove("all");
    if (Object.keys(scores).length) choose();
  };

  // -- reconstructions: one rate at a time

  const setUpGallery = gallery => {
    const steps = JSON.parse(gallery.querySelector(".steps").textContent);
    const dial = gallery.querySelector(".dial input");
    const said = gallery.querySelector(".dial output");
    const turn = () => {
      for (const figure of gallery.querySelectorAll("[data-step]")) {
        figure.hidden = figure.dataset.step !== dial.value;
        if (figure.hidden) figure.querySelector("audio, video")?.pause();
      }
      said.textContent = steps[dial.value];
      dial.setAttribute("aria-valuetext", steps[dial.value]);
    };
    if (steps.length < 2) return;
    dial.max = steps.length - 1;
    dial.value = steps.length - 1;
    dial.addEventListener("input", turn);
    gallery.querySelector(".dial").hidden = false;
    turn();
  };

  document.querySelectorAll(".board:not(.made)").forEach(setUpBoard);
  document.querySelectorAll(".made table").forEach(setUpSort);
  document.querySelectorAll(".gallery").forEach(setUpGallery);
})();
