"use strict";
(() => {
  const {figures, explorers, palettes} = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

  // Figures have names of colors. Only keys of colors are looked up: a text may begin with @.
  const color = (name, palette) => {
    if (typeof name !== "string" || name[0] !== "@") return name;
    const rest = name.slice(1);
    return /^\d+$/.test(rest) ? palette.series[Number(rest)] : palette[rest];
  };
  const colored = (value, palette) => {
    if (Array.isArray(value)) {
      return value.length && typeof value[0] === "object" ? value.map((item) => colored(item, palette)) : value;
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) =>
      [key, /color(scale)?$/.test(key) ? color(item, palette) : colored(item, palette)]));
  };
  // Make the hover texts of a heat map from its template; the names on the axes are already escaped for plotly.
  const withHoverTexts = (figure) => {
    for (const trace of figure.data) {
      if (trace.type !== "heatmap" || !trace.meta || trace.hovertext) continue;
      const [xs, ys] = [figure.layout.xaxis.ticktext, figure.layout.yaxis.ticktext];
      const fill = (x, y, z) => trace.meta.replace(/\{[xyz]\}/g, (m) => ({"{x}": xs[x], "{y}": ys[y], "{z}": z})[m]);
      trace.hovertext = trace.z.map((row, y) => row.map((z, x) => fill(x, y, z)));
      delete trace.meta;
    }
    return figure;
  };

  const draw = async (plot) => {
    const narrow = plot.clientWidth < 480;
    const figure = colored(withHoverTexts(figures[plot.dataset.figure]), palettes[dark.matches ? "dark" : "light"]);
    const layout = {...figure.layout, dragmode: figure.layout.scene ? "orbit" : narrow ? false : "zoom"};
    for (const name of ["xaxis", "yaxis"]) {
      const axis = layout[name];
      // Names without room for all are thinned out; hovering shows each.
      const room = name === "xaxis" ? plot.clientWidth / (narrow ? 26 : 20) : layout.height / 15;
      if (axis && axis.ticktext && axis.ticktext.length > room) {
        const step = Math.ceil(axis.ticktext.length / room);
        const thinned = (list) => list.filter((_, i) => i % step === 0);
        layout[name] = {...axis, ticktext: thinned(axis.ticktext), tickvals: thinned(axis.tickvals)};
      }
    }
    let data = figure.data;
    if (narrow) {
      data = data.map((t) => t.type !== "heatmap" ? t :
        {...t, texttemplate: t.z[0].length > 8 ? "" : t.texttemplate, colorbar: {...t.colorbar, title: {text: ""}, thickness: 8}});
    }
    await Plotly.react(plot, data, layout, config);
    plot.dataset.drawn = plot.dataset.figure;
  };
  const plots = [...document.querySelectorAll(".plot")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
    }
  }, {rootMargin: "500px"});
  for (const plot of plots) {
    seen.observe(plot);
    const figure = plot.closest("figure");
    figure.querySelector("select")?.addEventListener("change", (event) => {
      plot.dataset.figure = event.target.value;
      draw(plot);
      const numbers = figure.querySelector(".numbers");
      if (numbers.open) fill(numbers, plot);
    });
    figure.querySelector(".numbers").addEventListener("toggle", (event) => {
      if (event.target.open) fill(event.target, plot);
    });
    plot.addEventListener("keydown", (event) => rotate(plot, event));
  }
  dark.addEventListener("change", () => plots.filter((p) => p.dataset.drawn).forEach(draw));
  addEventListener("beforeprint", () => plots.filter((p) => !p.dataset.drawn).forEach(draw));

  // Arrow keys rotate figures in three dimensions.
  const rotate = (plot, event) => {
    const step = {ArrowLeft: [0.2, 0], ArrowRight: [-0.2, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15]}[event.key];
    if (!step || !plot.layout?.scene || event.target !== plot) return;
    event.preventDefault();
    const {x, y, z} = plot._fullLayout.scene.camera.eye;
    const [angle, radius] = [Math.atan2(y, x) + step[0], Math.hypot(x, y)];
    const eye = {x: radius * Math.cos(angle), y: radius * Math.sin(angle), z: z + step[1]};
    Plotly.relayout(plot, {"scene.camera.eye": eye});
  };

  // Show the numbers of a figure as a table, for readers who cannot hover.
  const text = (label) => String(label).replaceAll("<br>", "\n").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const element = (name, content = "", cls = "") => {
    const node = document.createElement(name);
    node.textContent = content;
    if (cls) node.className = cls;
    return node;
  };
  const fill = (numbers, plot) => {
    const {data, layout} = withHoverTexts(figures[plot.dataset.figure]);
    const rows = [];
    for (const trace of data) {
      if (trace.hoverinfo === "skip" || rows.length > 400) continue;
      const values = trace.type === "heatmap" ? trace.z.flat() : trace.orientation === "h" ? trace.x : trace.y;
      const texts = (trace.hovertext || []).flat();
      values.slice(0, 400).forEach((value, i) => {
        const row = [text(trace.name || ""), text(texts[i] ?? `${trace.x?.[i]}`), value === null ? "" : String(value)];
        rows.push(trace.z && trace.type === "scatter3d" ? [row[0], row[1], [trace.x[i], trace.y[i], trace.z[i]].join(", ")] : row);
      });
    }
    const table = element("table");
    for (const row of rows) {
      const line = element("tr");
      row.forEach((cell) => line.append(element("td", cell)));
      table.append(line);
    }
    const scroll = element("div", "", "scroll");
    scroll.tabIndex = 0;
    scroll.append(table);
    numbers.replaceChildren(numbers.querySelector("summary"), scroll);
  };

  // Explorers: texts whose tokens show their attention and their predictions.
  for (const place of document.querySelectorAll("[data-explorer]")) {
    const {pieces, heads, weights, next, p} = explorers[place.dataset.explorer];
    const bytes = Uint8Array.from(atob(weights), (c) => c.charCodeAt(0));
    const T = pieces.length;
    let [token, head] = [T - 1, 0];
    const row = element("div", "", "row");
    const label = element("label", "attention of ");
    const select = element("select");
    heads.forEach((name, i) => { const o = element("option", name); o.value = i; select.append(o); });
    label.append(select);
    row.append(label, element("span", "hover over a token, tap it, or move with the arrow keys", "soft"));
    const line = element("div", "", "tokens");
    line.setAttribute("role", "listbox");
    line.setAttribute("aria-label", "tokens of the text");
    const buttons = pieces.map((piece, t) => {
      const button = element("button", piece);
      button.type = "button";
      button.setAttribute("role", "option");
      for (const when of ["mouseenter", "focus", "click"]) button.addEventListener(when, () => choose(t));
      line.append(button);
      return button;
    });
    const two = element("div", "", "two");
    const [looks, says] = [element("div"), element("div")];
    says.setAttribute("aria-live", "polite");
    two.append(looks, says);
    place.append(row, line, two);
    const bars = (box, title, entries, came) => {
      box.replaceChildren(element("h3", title), ...entries.map(([name, share]) => {
        const bar = element("div", "", "bar");
        const fill = element("i");
        fill.style.width = `${(100 * share).toFixed(1)}%`;
        bar.append(element("b", name === came ? `${name} ✓` : name, name === came ? "came" : ""), fill, element("span", share.toFixed(3)));
        return bar;
      }));
    };
    const choose = (t) => {
      token = t;
      const at = (s) => bytes[(head * T + t) * T + s] / 255;
      const most = Math.max(...pieces.map((_, s) => at(s)), 0.01);
      buttons.forEach((button, s) => {
        button.setAttribute("aria-selected", s === t);
        button.tabIndex = s === t ? 0 : -1;
        button.style.background = s <= t ? `rgba(var(--tint), ${(0.75 * at(s) / most).toFixed(3)})` : "transparent";
        button.style.opacity = s <= t ? 1 : 0.45;
      });
      const order = pieces.map((_, s) => s).filter((s) => s <= t).sort((a, b) => at(b) - at(a)).slice(0, 10);
      bars(looks, `${pieces[t]} looks at`, order.map((s) => [`${pieces[s]} (${s + 1})`, at(s)]));
      bars(says, `after it the model expects`, next[t].map((name, k) => [name, p[t][k]]), pieces[t + 1]);
    };
    select.addEventListener("change", () => { head = Number(select.value); choose(token); });
    line.addEventListener("keydown", (event) => {
      const to = {ArrowLeft: token - 1, ArrowRight: token + 1, ArrowUp: token - 1, ArrowDown: token + 1, Home: 0, End: T - 1}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      buttons[Math.min(Math.max(to, 0), T - 1)].focus();
    });
    choose(token);
  }
})();
