// The page's script: sends a picture's bytes to this computer's own server and shows what comes back.
(() => {
  const LIMIT = 20e6; // bytes, as in turns.py
  const CELLS = 8; // along an edge, as in quiz.py
  const $ = (id) => document.getElementById(id);
  const ask = { picture: null, stop: null, stopMap: null, record: {}, strength: 60 };

  async function post(address, body, signal) {
    if (body?.size > LIMIT) throw new Error(`larger than ${LIMIT / 1e6} MB; make it smaller, or use code/infer.py`);
    const answer = await fetch(address, { method: "POST", body, signal }).catch(() => null);
    if (!answer) throw new Error("the server does not answer; is it still running?");
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(found.error ?? `the server could not do that (${answer.status})`);
    return found;
  }

  const message = (text) => {
    const line = document.createElement("p");
    line.className = "tell-error";
    line.setAttribute("role", "alert");
    line.textContent = text;
    return line;
  };

  const link = (text, name, content, kind) => {
    const found = document.createElement("a");
    found.className = "tell-button";
    found.textContent = text;
    found.download = name;
    found.href = kind ? URL.createObjectURL(new Blob([content], { type: kind })) : content;
    return found;
  };

  const csv = (rows) => {
    const cell = (value) => {
      const text = String(value ?? "");
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const names = Object.keys(rows[0]);
    return [names, ...rows.map((row) => names.map((name) => row[name]))]
      .map((row) => row.map(cell).join(",") + "\n").join("");
  };

  // --- one picture ------------------------------------------------------------------------------

  // What an address says of the picture, shown by show(); `place` says meanwhile what is `doing`.
  async function fill(place, doing, address, { signal }, show) {
    place.dataset.doing = doing;
    place.setAttribute("aria-busy", "true");
    try {
      const found = await post(address, ask.picture, signal);
      if (!signal.aborted) show(found);
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(message(error.message));
    } finally {
      if (!signal.aborted) place.removeAttribute("aria-busy");
    }
  }

  const fresh = (old) => {
    old?.abort(); // the server ends work that nobody waits for
    return new AbortController();
  };

  async function examine() {
    ask.stopMap?.abort();
    const stop = ask.stop = fresh(ask.stop), place = $("tell-result");
    await fill(place, "examining ...", "/examine", stop, ({ html, record }) => {
      ask.record = record;
      place.innerHTML = `<div class="tell-result"><div>${html.look}<div id="tell-said"></div></div>` +
        `<div>${html.verdict}</div></div><div id="tell-under"></div><p class="tell-buttons" id="tell-save"></p>`;
    });
    if (stop.signal.aborted || !$("tell-said")) return;
    drawMap();
    fill($("tell-under"), "saving and resizing it ...", "/under", stop, ({ html, record }) => {
      $("tell-under").innerHTML = html;
      ask.record.changed = record;
      offer();
    });
  }

  function drawMap() {
    if (!$("tell-said")) return;
    const stop = ask.stopMap = fresh(ask.stopMap), said = $("tell-said");
    const method = document.querySelector("#tell-method input:checked").value;
    fill(said, "drawing the map ...", `/map?method=${encodeURIComponent(method)}`, stop, ({ map, html, record }) => {
      const stack = said.previousElementSibling;
      stack.querySelector(".tell-map")?.remove();
      const image = new Image();
      Object.assign(image, { src: map, className: "tell-map", alt: "map: what speaks for generated and for real" });
      stack.append(image);
      said.innerHTML = html;
      const slider = said.querySelector(".tell-slider input");
      slider.value = ask.strength;
      cover(slider);
      ask.record.map = record;
      offer();
    });
  }

  // The buttons to save by, once map and table are there.
  function offer() {
    const { map, changed } = ask.record, image = document.querySelector(".tell-map");
    if (!map || !changed) return;
    const all = document.createElement("button");
    all.className = "tell-button";
    all.textContent = "Save all maps (ZIP)";
    all.onclick = () => fill(all, "drawing all maps ...", "/maps", ask.stop, ({ zip }) => link("", "maps.zip", zip).click());
    $("tell-save").replaceChildren(link("Save the map (PNG)", `map-${map.method}.png`, image.src), all,
      link("Save the numbers (JSON)", "tell.json", JSON.stringify(ask.record, null, 1), "application/json"));
  }

  const cover = (slider) => {
    ask.strength = slider.value;
    slider.closest(".tell-result").querySelector(".tell-map").style.opacity = slider.value / 100;
  };

  const take = (picture) => {
    ask.picture = picture;
    examine();
  };

  // --- many pictures ----------------------------------------------------------------------------

  async function batch(files) {
    const place = $("tell-batch"), rows = [];
    const head = document.createElement("p"), table = document.createElement("table");
    head.setAttribute("role", "status");
    table.innerHTML = "<tr><th>file</th><th>verdict</th><th>“generated”</th><th></th></tr>";
    place.replaceChildren(head, table);
    for (const file of files) {
      head.textContent = `${rows.length} of ${files.length} examined ...`;
      const safe = file.name.replace(/^[=+\-@\t\r]/, "'$&"); // else a spreadsheet runs it
      const row = { file: safe, verdict: "", probability: "", threshold: "", logit: "", width: "", height: "",
        treatment: "", warnings: "", error: "" };
      try {
        const found = await post("/verdict", file);
        for (const key of Object.keys(row)) if (key in found) row[key] = found[key];
        row.warnings = found.warnings.join("; ");
      } catch (error) {
        row.error = error.message;
      }
      rows.push(row);
      const line = table.insertRow();
      const share = row.error ? "" : `${(100 * row.probability).toFixed(1)} %`;
      for (const text of [file.name, row.verdict || "none", share, row.error || row.warnings])
        line.insertCell().textContent = text;
      line.dataset.verdict = row.verdict;
    }
    const count = (verdict) => rows.filter((row) => row.verdict === verdict).length;
    head.textContent = `${rows.length} pictures: ${count("FAKE")} FAKE, ${count("REAL")} REAL, ` +
      `${count("cannot tell")} cannot tell, ${count("")} unreadable`;
    if (rows.length) place.append(link("Save the table (CSV)", "verdicts.csv", csv(rows), "text/csv"));
  }

  // --- quiz -------------------------------------------------------------------------------------

  async function quiz(n) {
    const place = $("tell-quiz"), person = $("tell-person").value.trim() || "me", rows = [];
    try {
      const questions = await post(`/quiz?n=${n}`);
      for (const [i, question] of questions.entries()) rows.push(await pose(place, question, i, n, person));
      const found = await post("/answers", JSON.stringify(rows));
      place.innerHTML = found.html;
      place.append(link("Save my answers (CSV)", "answers.csv", csv(rows), "text/csv"));
    } catch (error) {
      place.replaceChildren(message(error.message));
    }
  }

  function pose(place, { picture, map, row }, i, n, person) {
    const marks = new Array(CELLS * CELLS).fill("0");
    place.innerHTML = `<p role="status">Picture ${i + 1} of ${n}${map ? ", with the map" : ", without the map"}</p>
      <div class="tell-stack tell-pixels tell-asked"><img src="${picture}" alt="real or generated?">
      ${map ? `<img class="tell-map" src="${map}" alt="the map" style="opacity:.6">` : ""}<div class="tell-grid">
      ${marks.map((_, cell) => `<button data-cell="${cell}" aria-label="part ${cell + 1}" tabindex="-1"></button>`)
        .join("")}</div></div>
      <p class="tell-buttons"><button class="tell-button" data-answer="0">Real</button>
      <button class="tell-button" data-answer="1">Generated</button></p>`;
    return new Promise((answered) => {
      place.onclick = ({ target }) => {
        const { cell, answer } = target.dataset;
        if (cell !== undefined) {
          marks[cell] = marks[cell] === "1" ? "0" : "1";
          target.classList.toggle("tell-marked");
        } else if (answer !== undefined) {
          place.onclick = null;
          const given = { ...row, person, answer, marks: marks.includes("1") ? marks.join("") : "" };
          answered(Object.fromEntries(Object.entries(given).map(([key, value]) => [key, String(value)])));
        }
      };
    });
  }

  // --- events: on the document, since Gradio draws the page when it likes -------------------------

  const zone = (event) => event.target.closest?.(".tell-drop");
  const given = (drop, files) => {
    if (!files.length) return;
    if (drop.id === "tell-drop") take(files[0]);
    else batch([...files].slice(0, 500));
  };

  document.addEventListener("click", async (event) => {
    const drop = zone(event), example = event.target.closest?.(".tell-example"), start = event.target.dataset?.start;
    if (drop && event.target.type !== "file") drop.querySelector("input").click();
    if (example) take(await (await fetch(example.querySelector("img").src)).blob());
    if (start) quiz(Number(start));
  });
  document.addEventListener("keydown", (event) => {
    if (zone(event) && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      event.target.querySelector("input").click();
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.closest?.("#tell-method")) drawMap();
    const drop = zone(event);
    if (!drop || event.target.type !== "file") return;
    given(drop, [...event.target.files]);
    event.target.value = "";
  });
  document.addEventListener("input", (event) => {
    if (event.target.closest?.(".tell-slider")) cover(event.target);
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // else the browser leaves the page for the picture
      const drop = zone(event);
      document.querySelectorAll(".tell-drop").forEach((each) => each.classList.toggle("tell-over", each === drop && kind === "dragover"));
      if (kind === "drop" && drop) given(drop, event.dataTransfer.files);
    });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) take(event.clipboardData.files[0]);
  });
})();
