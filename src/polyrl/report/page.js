// Draws the page from the JSON beside it. Text from models and data only ever goes through textContent.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const SVG = document.getElementById("drawing").namespaceURI;
  const { methods, metric, axes, metrics } = data;
  const hidden = new Set();
  let showSeeds = true;
  let axis = axes[0];
  let shown = metrics[0];
  let range = "whole";
  const byId = (id) => document.getElementById(id);
  const look = (method) => methods.indexOf(method);

  // ---- elements ----------------------------------------------------------------------------------------------------
  function node(parent, name, attributes = {}, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function element(parent, name, className = "", text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function canvas(host, height, label) {
    host.replaceChildren();
    const width = Math.max(260, Math.round(host.clientWidth));
    const svg = node(host, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
    return { svg, width, height };
  }
  function blank(host, text) {
    host.replaceChildren();
    element(host, "p", "blank", text);
  }
  const ruler = document.createElement("canvas").getContext("2d");
  function widthOf(text, font = "13px") {
    ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
    return ruler.measureText(text).width;
  }
  const draw = polyrlDraw({ node, widthOf });
  const { at, minus, figures, short, scientific, domain, mark, lineText } = draw;
  const colour = (method) => draw.colour(look(method));

  // ---- numbers -----------------------------------------------------------------------------------------------------
  const fixed = (value, digits = metric.digits) => minus(Number(value.toFixed(digits)) === 0 ? (0).toFixed(digits) : value.toFixed(digits));
  const signed = (value) => (Number(value.toFixed(metric.digits)) > 0 ? "+" : "") + fixed(value);
  const times = (value) => {
    if (value >= 1e6 || (value > 0 && value < 0.01)) return scientific(value);
    return draw.grouped(value, 0, value < 10 ? 2 : value < 100 ? 1 : 0);
  };
  const told = (value) => (metric.log ? figures(value) : fixed(value)); // a value of the deciding metric
  const interval = (e, say = told) => (e.low === null ? "" : ` [${say(e.low)}, ${say(e.high)}]`);
  // Values of a log metric are drawn and averaged as their decimal logarithm; `floor` stands for what is not above it.
  const logged = (value) => Math.log10(Math.max(value, data.floor));
  const put = (item, value) => (item.log ? logged(value) : value);
  const taken = (item, value) => (item.log ? 10 ** value : value);
  const unitOf = (item) => (item.unit ? `${item.label} (${item.unit})` : item.label);

  // Lines that an axis over `values` shows: those within it, and others as long as the results keep a third of the axis.
  function linesWithin(values) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const room = high - low || Math.abs(high) || 1;
    return metric.lines.filter((l) => {
      const place = put(metric, l.value);
      if (Math.max(high, place) - Math.min(low, place) > 3 * room) return false;
      [low, high] = [Math.min(low, place), Math.max(high, place)];
      return true;
    });
  }

  // ---- series ------------------------------------------------------------------------------------------------------
  function points(run, metricKey, axisKey) {
    const block = run.curves.find((b) => metricKey in b.y);
    if (!block) return [];
    const log = metrics.some((m) => m.key === metricKey && m.log);
    const result = [];
    block.x[axisKey].forEach((x, i) => {
      const y = block.y[metricKey][i];
      if (x === null || y === null || (result.length && x <= result[result.length - 1][0])) return;
      result.push([x, log ? logged(y) : y]);
    });
    return result;
  }
  function interpolate(curve, x) {
    let high = curve.findIndex((p) => p[0] >= x);
    if (high < 0) high = curve.length - 1;
    if (high === 0) return curve[0][1];
    const [[x0, y0], [x1, y1]] = [curve[high - 1], curve[high]];
    return y0 + ((y1 - y0) * Math.min(1, (x - x0) / (x1 - x0)));
  }
  // Mean over finished seeds, on a grid that lies within the range of all of them: nothing is extrapolated.
  function mean(curves) {
    if (curves.length < 2 || curves.some((c) => c.length < 2)) return [];
    const low = Math.max(...curves.map((c) => c[0][0]));
    const high = Math.min(...curves.map((c) => c[c.length - 1][0]));
    if (!(high > low)) return [];
    const same = curves.every((c) => c.length === curves[0].length && c.every((p, i) => p[0] === curves[0][i][0]));
    const count = Math.min(90, Math.max(...curves.map((c) => c.length)));
    const grid = same ? curves[0].map((p) => p[0]) : Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
    return grid.map((x) => {
      const values = curves.map((c) => interpolate(c, x));
      const centre = values.reduce((a, b) => a + b, 0) / values.length;
      const t = values.length >= data.least_seeds_for_band ? data.t[values.length] : null;
      if (t === null || t === undefined) return { x, y: centre, low: null, high: null };
      const variance = values.reduce((a, b) => a + (b - centre) ** 2, 0) / (values.length - 1);
      const half = t * Math.sqrt(variance / values.length);
      return { x, y: centre, low: centre - half, high: centre + half };
    });
  }
  function gather(metricKey, axisKey) {
    return methods.filter((m) => !hidden.has(m)).map((method) => {
      const runs = data.runs.filter((r) => r.method === method)
        .map((run) => ({ run, curve: points(run, metricKey, axisKey) })).filter((r) => r.curve.length);
      const whole = runs.filter((r) => r.run.status === "finished");
      return { method, runs, mean: mean(whole.map((r) => r.curve)), n: whole.length };
    }).filter((m) => m.runs.length);
  }

  // ---- learning curves ---------------------------------------------------------------------------------------------
  function drawCurves() {
    const host = byId("curves-chart");
    const series = gather(shown.key, axis.key);
    if (!series.length) {
      blank(host, hidden.size ? "No method with this metric is switched on." : "Nothing was logged to draw.");
      byId("curves-caption").textContent = "";
      return;
    }
    const alone = (m) => m.mean.length === 0;
    const reach = (from) => series.flatMap((m) => [
      ...(showSeeds || alone(m) ? m.runs.flatMap((r) => r.curve.filter((p) => p[0] >= from).map((p) => p[1])) : []),
      ...m.mean.filter((p) => p.x >= from).flatMap((p) => (p.low === null ? [p.y] : [p.low, p.high])),
    ]);
    const xs = series.flatMap((m) => m.runs.flatMap((r) => [r.curve[0][0], r.curve[r.curve.length - 1][0]]));
    const half = Math.max(...xs) / 2;
    const ys = range === "end" && reach(half).length ? reach(half) : reach(-Infinity);
    const lines = shown.key === metric.key ? linesWithin(ys) : [];
    const unseen = shown.key === metric.key ? metric.lines.filter((l) => !lines.includes(l)) : [];
    const sparse = (m) => m.n < data.least_seeds_for_band && m.runs.every((r) => r.curve.length <= 24);
    const chart = {
      width: Math.max(260, Math.round(host.clientWidth)),
      height: host.clientWidth >= 720 ? 420 : 330,
      clip: range === "end",
      x: { title: unitOf(axis), domain: domain([0, ...xs], 0) },
      y: { title: unitOf(shown), log: shown.log, domain: domain([...ys, ...lines.map((l) => put(metric, l.value))], 0.05, shown.unit.startsWith("share"), shown.log) },
      lines: lines.map((l) => ({ ...l, value: put(metric, l.value) })),
      series: series.map((m) => {
        const longestRun = m.runs.reduce((a, b) => (a.curve.length >= b.curve.length ? a : b)).curve;
        const last = m.mean[m.mean.length - 1];
        return {
          name: m.method,
          look: look(m.method),
          band: m.mean.length && m.mean[0].low !== null ? m.mean.map((p) => [p.x, p.low, p.high]) : null,
          curves: showSeeds || alone(m) ? m.runs.map(({ run, curve }) => ({
            points: curve,
            kind: alone(m) && m.runs.length === 1 ? "mean" : run.status !== "finished" ? "lost" : "seed",
            lost: run.status !== "finished",
            dots: sparse(m),
          })) : [],
          mean: m.mean.length ? m.mean.map((p) => [p.x, p.y]) : null,
          end: last ? [last.x, last.y] : longestRun[longestRun.length - 1],
        };
      }),
    };
    const { svg } = canvas(host, chart.height, `${shown.label} by ${axis.label.toLowerCase()}: ${series.map((m) => m.method).join(", ")}${lines.length ? `; lines: ${lines.map(lineText).join(", ")}` : ""}`);
    const area = draw.curves(svg, chart);
    caption(series, unseen.map(lineText));
    hover(host, area, series);
  }
  function caption(series, unseen) {
    const banded = series.filter((m) => m.mean.length && m.mean[0].low !== null);
    const few = series.filter((m) => m.n < data.least_seeds_for_band && m.n > 0);
    const said = [];
    if (series.some((m) => m.mean.length)) said.push(`Thick line: ${shown.log ? "geometric mean" : "mean"} over finished seeds; thin lines: single seeds.`);
    if (banded.length) said.push(`Shaded: 95% t interval of the mean${shown.log ? "'s logarithm" : ""}.`);
    if (data.runs.length === 1) said.push("One run: one seed says nothing about the spread between seeds.");
    else if (few.length) said.push(`Fewer than ${data.least_seeds_for_band} finished seeds (${few.map((m) => `${m.method}: ${m.n}`).join(", ")}): no band.`);
    if (series.some((m) => m.runs.some((r) => r.run.status !== "finished"))) said.push("Dotted with a cross: a run that failed or stopped early, outside the mean.");
    if (range === "end") said.push("Drawn to the range of the second half of the budget: earlier values may lie beyond the edge.");
    if (unseen.length) said.push(`Too far away to be drawn: ${unseen.join(", ")}.`);
    byId("curves-caption").textContent = said.join(" ");
  }
  function hover(host, area, series) {
    const { svg, sx } = area;
    const single = (m) => (m.runs.length === 1 && !m.mean.length ? m.runs[0].curve.map(([x, y]) => ({ x, y, low: null })) : m.mean);
    const lines = series.map((m) => ({ method: m.method, curve: single(m) })).filter((m) => m.curve.length);
    if (!lines.length) return;
    const stops = [...new Set(lines.flatMap((m) => m.curve.map((p) => p.x)))].sort((a, b) => a - b);
    const hair = node(svg, "line", { class: "hair", y1: area.top, y2: area.bottom, visibility: "hidden" });
    const box = element(host, "div", "readout");
    box.hidden = true;
    box.setAttribute("aria-live", "polite");
    let current = stops.length - 1;
    function show(index) {
      current = Math.max(0, Math.min(stops.length - 1, index));
      const x = stops[current];
      hair.setAttribute("x1", at(sx(x)));
      hair.setAttribute("x2", at(sx(x)));
      hair.setAttribute("visibility", "visible");
      box.replaceChildren();
      element(box, "div", "at", `${axis.label} ${short(x)}${axis.unit ? ` ${axis.unit}` : ""}`);
      const said = (v) => (shown.key === metric.key ? told : shown.log ? figures : short)(taken(shown, v));
      const down = shown.key === metric.key && !metric.higher_is_better;
      const read = lines.filter((m) => x >= m.curve[0].x && x <= m.curve[m.curve.length - 1].x).map((m) => ({
        method: m.method,
        y: interpolate(m.curve.map((p) => [p.x, p.y]), x),
        low: m.curve[0].low === null ? null : interpolate(m.curve.map((p) => [p.x, p.low]), x),
        high: m.curve[0].low === null ? null : interpolate(m.curve.map((p) => [p.x, p.high]), x),
      })).sort((a, b) => (down ? a.y - b.y : b.y - a.y));
      for (const r of read) {
        const row = element(box, "div");
        element(row, "span", `block ${colour(r.method)}`);
        element(row, "span", "", r.method);
        element(row, "b", "", said(r.y));
        if (r.low !== null) element(row, "i", "", `[${said(r.low)}, ${said(r.high)}]`);
      }
      box.hidden = false;
      const factor = host.clientWidth / area.width;
      const onLeft = sx(x) > area.width / 2;
      box.style.left = onLeft ? "auto" : `${sx(x) * factor + 14}px`;
      box.style.right = onLeft ? `${(area.width - sx(x)) * factor + 14}px` : "auto";
    }
    function hide() {
      hair.setAttribute("visibility", "hidden");
      box.hidden = true;
    }
    function follow(event) {
      const x = ((event.clientX - host.getBoundingClientRect().left) / host.clientWidth) * area.width;
      let best = 0;
      stops.forEach((stop, i) => { if (Math.abs(sx(stop) - x) < Math.abs(sx(stops[best]) - x)) best = i; });
      show(best);
    }
    host.onpointermove = follow;
    host.onpointerdown = follow;
    host.onpointerleave = hide;
    host.onblur = hide;
    host.onkeydown = (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (event.key === "Escape") hide();
      if (move === undefined) return;
      event.preventDefault();
      show(box.hidden && Math.abs(move) === 1 ? (move < 0 ? stops.length - 1 : 0) : current + move);
    };
  }

  // ---- rows of dots: final results and differences -----------------------------------------------------------------
  function drawRows(host, { items, values, pad = 0.08, zero = null, log = false, lines = [], title }) {
    const [width, has] = [Math.max(260, Math.round(host.clientWidth)), zero !== null];
    let [low, high] = domain([...(has ? [zero] : []), ...values, ...lines.map((l) => l.value)], pad, false, log || has);
    if (!has && !log && Math.min(...values) >= 0) low = Math.max(0, low);
    const chart = { items, width, domain: [low, high], title, zero, log, lines };
    const { svg } = canvas(host, 10, title);
    const height = draw.rows(svg, chart);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
  }
  function drawFinal() {
    const host = byId("final-chart");
    const items = methods.map((method) => ({
      method,
      runs: data.runs.filter((r) => r.method === method && r.final !== null),
      estimate: data.final[method],
      starts: data.runs.filter((r) => r.method === method && r.start !== null).map((r) => r.start),
    })).filter((i) => i.runs.length);
    if (!items.length) {
      blank(host, "No run has finished.");
      return;
    }
    const barred = (i) => i.estimate.n >= data.least_seeds_for_band && i.estimate.low !== null;
    const log = metric.log;
    const u = (value) => put(metric, value);
    const start = (i) => (i.starts.length ? i.starts.map(u).reduce((a, b) => a + b, 0) / i.starts.length : null);
    const ends = items.flatMap((i) => [...i.runs.map((r) => u(r.final)), ...(barred(i) ? [u(i.estimate.low), u(i.estimate.high)] : [])]);
    const lines = linesWithin(ends);
    // A start that is far away would leave the results no room: it is told in words above, and not drawn here.
    const near = [...ends, ...lines.map((l) => u(l.value))];
    const begun = items.map(start).filter((v) => v !== null);
    const breadth = (list) => Math.max(...list) - Math.min(...list);
    const starts = begun.length > 0 && (!lines.length || breadth([...near, ...begun]) <= 4 * breadth(near));
    const values = starts ? [...ends, ...begun] : ends;
    const title = `Final ${metric.label}${metric.unit ? ` (${metric.unit})` : ""}`;
    const text = (i) => told(i.estimate.value) + (barred(i) ? interval(i.estimate) : "");
    drawRows(host, {
      items: items.map((i) => ({
        name: i.method,
        method: i.method,
        text: text(i),
        look: look(i.method),
        start: starts ? start(i) : null,
        dots: i.runs.map((run) => ({ value: u(run.final), title: `${i.method}, seed ${run.seed}: ${told(run.final)}` })),
        bar: barred(i) ? [u(i.estimate.low), u(i.estimate.high)] : null,
        value: i.runs.length > 1 ? u(i.estimate.value) : null,
      })),
      values,
      title,
      log,
      lines: lines.map((l) => ({ ...l, value: u(l.value) })),
    });
    const several = items.some((i) => i.runs.length > 1);
    const said = [several ? `Every small mark is one finished seed; the large mark is their ${log ? "geometric " : ""}mean.` : "One finished seed."];
    if (items.some(barred)) said.push(`Bar: 95% t interval${log ? " of the logarithm" : ""}.`);
    if (several && items.some((i) => !barred(i))) said.push(`No bar below ${data.least_seeds_for_band} seeds.`);
    if (starts) said.push("Grey tick: before training.");
    if (begun.length && !starts) said.push(`Before training: ${items.filter((i) => i.starts.length).map((i) => `${i.method} ${told(taken(metric, start(i)))}`).join(", ")}, too far away to be drawn.`);
    const unseen = metric.lines.filter((l) => !lines.includes(l));
    if (unseen.length) said.push(`Too far away to be drawn: ${unseen.map((l) => `${l.name} ${minus(l.text)}`).join(", ")}.`);
    byId("final-caption").textContent = said.join(" ");
  }
  function drawPairs() {
    const host = byId("pairs-chart");
    if (!host) return;
    const items = data.pairs;
    const log = metric.log; // then a pair is compared by the factor between its results
    const u = (value) => (log ? Math.log10(value) : value);
    const values = items.flatMap(({ difference: d }) => (d.low === null ? [u(d.value)] : [u(d.low), u(d.high)]));
    const title = log ? `Final ${metric.label}: first over second, as a factor` : `Difference in ${metric.label}${metric.unit ? ` (${metric.unit})` : ""}`;
    const lead = (p) => `${p.first} ${log ? "/" : "−"} ${p.second}`;
    const text = (p) => (log ? `${times(p.difference.value)}${interval(p.difference, times)}` : `${signed(p.difference.value)}${interval(p.difference)}`);
    drawRows(host, {
      items: items.map((p) => ({
        name: lead(p),
        text: text(p),
        look: p.shown ? look(p.first) : null,
        capped: true,
        open: !p.shown,
        bar: p.difference.low === null ? null : [u(p.difference.low), u(p.difference.high)],
        value: u(p.difference.value),
      })),
      values,
      title,
      zero: 0,
      log,
    });
  }

  // ---- diagnostics: small curves side by side ----------------------------------------------------------------------
  function drawPanels() {
    if (!data.panels.length) return;
    byId("panels").replaceChildren();
    for (const key of data.panels) {
      const item = metrics.find((m) => m.key === key);
      const series = gather(key, axis.key);
      if (!series.length) continue;
      const figure = element(byId("panels"), "figure");
      const head = element(figure, "figcaption");
      const button = element(head, "button", "", item.label);
      button.type = "button";
      button.title = `Draw ${item.label.toLowerCase()} large`;
      button.onclick = () => {
        byId("metric").value = key;
        byId("metric").onchange({ target: byId("metric") });
        byId("curves").scrollIntoView();
      };
      if (item.unit) element(head, "small", "", item.unit);
      const host = element(figure, "div", "chart");
      const drawn = (m) => (m.mean.length ? [m.mean.map((p) => [p.x, p.y])] : m.runs.map((r) => r.curve));
      const all = series.flatMap((m) => drawn(m).flat());
      const chart = {
        width: Math.max(260, Math.round(host.clientWidth)),
        height: 150,
        small: true,
        unnamed: true,
        x: { domain: domain([0, ...all.map((p) => p[0])], 0) },
        y: { log: item.log, domain: domain(all.map((p) => p[1]), 0.08, item.unit.startsWith("share"), item.log) },
        series: series.map((m) => ({
          name: m.method,
          look: look(m.method),
          curves: drawn(m).map((points) => ({ points, kind: m.mean.length || m.runs.length === 1 ? "mean" : "seed" })),
        })),
      };
      draw.curves(canvas(host, 150, `${item.label} by ${axis.label.toLowerCase()}: ${series.map((m) => m.method).join(", ")}`).svg, chart);
    }
    byId("panels-legend").replaceChildren();
    for (const method of methods.length > 1 ? methods.filter((m) => !hidden.has(m)) : []) {
      const item = element(byId("panels-legend"), "span", "item");
      swatch(item, method);
      element(item, "span", "", method);
    }
    byId("panels-caption").textContent = `Along ${axis.label.toLowerCase()}; means over finished seeds where there are two or more. A title draws its metric large.`;
  }

  // ---- cost --------------------------------------------------------------------------------------------------------
  const stageNames = data.stages;
  function drawCost() {
    const host = byId("cost-chart");
    if (!host) return;
    const total = (c) => stageNames.reduce((sum, s) => sum + (c.stages[s] || 0), 0);
    const items = data.costs.map((c) => ({ name: c.method, text: `${short(c.total ?? total(c))} s`, pieces: stageNames.map((s) => c.stages[s] || 0) }));
    const chart = { items, pieces: stageNames, width: Math.max(260, Math.round(host.clientWidth)), title: "Wall time of a run (s)" };
    const label = `Seconds by stage: ${data.costs.map((c) => `${c.method} ${short(total(c))}`).join(", ")}`;
    draw.stacked(canvas(host, draw.stackedHeight(chart), label).svg, chart);
  }

  // ---- KL ----------------------------------------------------------------------------------------------------------
  const bought = metrics.filter((m) => m.key === metric.key || m.key === "reward" || m.key === "eval/reward");
  const klKey = ["kl", "eval/kl"].find((key) => data.runs.some((r) => points(r, key, axis.key).length > 1));
  const hasKl = klKey !== undefined && bought.length > 0 && !metric.log;
  // The course of a run in the plane of two logged quantities, averaged until it can be seen.
  function path(run, xKey, key) {
    if (axes.some((a) => a.key === xKey)) return points(run, key, xKey);
    const over = axes.some((a) => a.key === "samples") ? "samples" : axis.key;
    const along = points(run, xKey, over);
    const value = points(run, key, over);
    if (along.length < 2 || value.length < 2) return [];
    const zero = xKey === klKey || xKey === "kl" || xKey === "eval/kl"; // the KL to the start is zero at the start
    const first = zero ? [[0, 0], ...(along[0][0] > 0 ? along : along.slice(1))] : along;
    const last = first[first.length - 1][0] + (first[first.length - 1][0] - first[first.length - 2][0]); // one interval further at most
    const size = Math.max(1, Math.ceil(value.length / 14));
    const average = (list) => list.reduce((a, b) => a + b, 0) / list.length;
    const result = [];
    for (let i = 0; i < value.length; i += size) {
      const part = value.slice(i, i + size).filter((p) => p[0] <= last && p[0] >= first[0][0]);
      if (part.length) result.push([average(part.map((p) => interpolate(first, p[0]))), average(part.map((p) => p[1]))]);
    }
    return result;
  }
  const onScale = { linear: (v) => v, sqrt: (v) => Math.sqrt(Math.max(0, v)), log: (v) => Math.log10(v) };
  const scaleWords = { linear: (t) => t, sqrt: (t) => `√ of ${t}`, log: (t) => t };
  // Draws `against` over the quantity xKey, a path for each method; returns whether there was anything to draw.
  function drawPlane(host, { xKey, against, xScale = "linear", yScale = "linear", xTitle, fromZero, height, small = false, fits = {} }) {
    const [put, raised] = [onScale[xScale], onScale[against.log ? "linear" : yScale]]; // points of a log metric are logarithms
    const drawable = (p) => (xScale !== "log" || p[0] > 0) && (yScale !== "log" || against.log || p[1] > 0); // a logarithm has no place for 0
    const timed = axes.some((a) => a.key === xKey);
    const series = methods.filter((m) => !hidden.has(m)).map((method) => {
      const paths = data.runs.filter((r) => r.method === method && r.status === "finished")
        .map((r) => path(r, xKey, against.key).filter(drawable).map(([x, y]) => [put(x), raised(y)])).filter((p) => p.length > 1);
      const length = Math.min(...paths.map((p) => p.length));
      const row = timed ? mean(paths) : []; // over what was spent, seeds are averaged at equal cost
      if (row.length) return { method, paths, middle: row.map((p) => [p.x, p.y]), band: row[0].low === null ? null : row.map((p) => [p.x, p.low, p.high]) };
      const middle = paths.length > 1 ? Array.from({ length }, (_, i) => [0, 1].map((d) => paths.reduce((s, p) => s + p[i][d], 0) / paths.length)) : paths[0];
      return { method, paths, middle };
    }).filter((m) => m.paths.length);
    if (!series.length) return false;
    const laws = (method) => (fits[method] || []).map((f) => ({ points: f.points.map(([x, y]) => [put(x), raised(y)]), kind: `fit ${f.law}` }));
    // a law goes as far as the seed that went farthest, which is beyond the mean
    const all = series.flatMap((m) => [...(small ? m.middle : m.paths.flat()), ...laws(m.method).flatMap((law) => law.points)]);
    const chart = {
      width: Math.max(260, Math.round(host.clientWidth)),
      height,
      unnamed: true,
      size: small ? 4.5 : 5.5,
      x: { title: scaleWords[xScale](xTitle), log: xScale === "log", domain: domain([...(fromZero ? [0] : []), ...all.map((p) => p[0])], 0.04, false, xScale === "log") },
      y: { title: small ? against.unit : unitOf(against), log: yScale === "log", domain: domain(all.map((p) => p[1]), 0.06, against.unit.startsWith("share"), yScale === "log") },
      series: series.map((m) => ({
        name: m.method,
        look: look(m.method),
        band: m.band,
        curves: [
          ...(m.paths.length > 1 && !small ? m.paths.map((points) => ({ points, kind: "seed", end: true })) : []),
          ...laws(m.method),
        ],
        mean: m.middle,
        end: m.middle[m.middle.length - 1],
      })),
    };
    draw.curves(canvas(host, height, `${against.label} against ${xTitle}`).svg, chart);
    return true;
  }
  function drawKl() {
    const host = byId("kl-chart");
    const against = bought.find((m) => m.key === byId("kl-metric").value) || bought[0];
    const drawn = drawPlane(host, {
      xKey: klKey,
      against,
      xTitle: "KL to the starting model (nats per sequence)",
      fromZero: true,
      height: host.clientWidth >= 640 ? 380 : 320,
    });
    if (!drawn) {
      blank(host, "No shown method has a finished run with a KL.");
      return;
    }
    byId("kl-caption").textContent = "From the start (left) to the end (mark): how far each method moved from its starting model, and what it gained. Thick: mean over finished seeds; thin: seeds. Higher at the same KL is the better bargain.";
    if (data.domain !== "language") byId("kl-caption").textContent = byId("kl-caption").textContent.replace("starting model", "starting policy");
    if (!metric.higher_is_better && against.key === metric.key) byId("kl-caption").textContent = byId("kl-caption").textContent.replace("Higher", "Lower");
  }

  // ---- what the task asks to be drawn ------------------------------------------------------------------------------
  // By which power a quantity grows, where the drawing has two logarithmic axes.
  function slopeNote(figure, chart, against) {
    const found = chart.slopes[against.key] || {};
    const each = methods.filter((m) => !hidden.has(m) && found[m])
      .map((m) => `${m} ${fixed(found[m].value, 2)}${interval(found[m], (v) => fixed(v, 2))}`);
    if (each.length) element(figure, "p", "note slopes", `Slope over the last decade, mean over seeds [95% t interval]: ${each.join("; ")}. 1 is linear, 0.5 a square root, 0 has stopped growing.`);
  }
  function drawCharts() {
    data.charts.forEach((chart, i) => {
      const host = byId(`chart-${i}`);
      host.replaceChildren();
      const along = [...metrics, ...axes].find((m) => m.key === chart.x);
      // all figures first: their number decides how wide each is
      const planes = chart.y.map((key) => metrics.find((m) => m.key === key)).filter((against) => along && against).map((against) => {
        const figure = element(host, "figure");
        element(element(figure, "figcaption"), "strong", "", against.label);
        return { figure, against, place: element(figure, "div", "chart") };
      });
      for (const { figure, against, place } of planes) {
        const fits = chart.fitted === against.key ? chart.fits : {};
        const xTitle = along.unit ? `${along.label} (${along.unit})` : along.label;
        if (!drawPlane(place, { xKey: chart.x, against, xScale: chart.x_scale, yScale: chart.y_scale, xTitle, fromZero: chart.x === "kl" || chart.x === "eval/kl", height: 260, small: true, fits })) figure.remove();
        else slopeNote(figure, chart, against);
      }
      for (const method of Object.keys(chart.fits || {}).filter((m) => !hidden.has(m) && chart.fits[m].length)) {
        const told = chart.fits[method].map((f) => `${f.words} with α ${f.alpha.toFixed(2)}, β ${f.beta.toFixed(2)}, error ${f.rmse.toFixed(3)}`);
        element(host, "p", "note", `${method}, d the root: ${told.join("; ")} (dashed and dotted).`);
      }
      if (!host.childElementCount) element(host, "p", "note", "No shown method has a finished run that logged both quantities.");
      byId(`chart-${i}-legend`).replaceChildren();
      for (const method of methods.length > 1 ? methods.filter((m) => !hidden.has(m)) : []) {
        const item = element(byId(`chart-${i}-legend`), "span", "item");
        swatch(item, method);
        element(item, "span", "", method);
      }
    });
  }

  // ---- completions -------------------------------------------------------------------------------------------------
  const { prompts } = data.samples;
  let asked = 0;
  function drawSamples() {
    const { prompt, expected, answers } = prompts[asked];
    byId("prompt").value = String(asked);
    byId("previous").disabled = asked === 0;
    byId("following").disabled = asked === prompts.length - 1;
    byId("asked").replaceChildren();
    element(byId("asked"), "pre", "", prompt);
    if (expected) {
      const aside = element(byId("asked"), "p", "aside", "Expected: ");
      element(aside, "code", "", expected);
    }
    byId("answers").replaceChildren();
    for (const answer of answers) {
      const card = element(byId("answers"), "article", "card");
      const head = element(card, "header", colour(answer.method));
      element(head, "span", "block");
      element(head, "span", "", answer.method);
      const known = answer.right !== null;
      const said = [known ? (answer.right ? "✓ right" : "✗ wrong") : "", answer.score === null || (known && answer.score === Number(answer.right)) ? "" : `score ${short(answer.score)}`];
      element(head, "span", `badge ${known ? (answer.right ? "right" : "wrong") : ""}`, said.filter(Boolean).join(", "));
      element(card, "pre", "", answer.text === "" ? "(empty)" : answer.text);
      for (const [name, value] of answer.logged) {
        const aside = element(card, "p", "aside", `${name}: `);
        element(aside, "code", "", value);
      }
    }
    const which = [...new Set(answers.map((a) => (data.samples.one_seed ? `seed ${a.seed}, iteration ${a.iteration}` : `${a.method}: seed ${a.seed}, iteration ${a.iteration}`)))];
    byId("samples-caption").textContent = `From the last evaluation (${which.join("; ")}). Not chosen by their score.`;
  }

  // ---- data --------------------------------------------------------------------------------------------------------
  function cell(value) {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  }
  const csv = (table) => `${table.map((row) => row.map(cell).join(",")).join("\n")}\n`;
  function resultsCsv() {
    const head = ["method", "seed", "status", `start ${metric.key}`, `final ${metric.key}`, ...axes.map((a) => a.key)];
    return csv([head, ...data.runs.map((r) => [r.method, r.seed, r.status, r.start, r.final, ...axes.map((a) => r.spent[a.key])])]);
  }
  function curvesCsv() {
    const table = [["method", "seed", ...axes.map((a) => a.key), "metric", "value"]];
    for (const run of data.runs) for (const block of run.curves) for (const [key, values] of Object.entries(block.y)) {
      values.forEach((value, i) => { if (value !== null) table.push([run.method, run.seed, ...axes.map((a) => block.x[a.key][i]), key, value]); });
    }
    return csv(table);
  }
  function download(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  function fill(select, items) {
    const groups = new Map();
    for (const item of items) {
      if (!groups.has(item.group)) {
        const group = element(select, "optgroup");
        group.label = item.group;
        groups.set(item.group, group);
      }
      element(groups.get(item.group), "option", "", item.label).value = item.key;
    }
  }
  function swatch(parent, method) {
    const svg = node(parent, "svg", { class: `swatch ${colour(method)}`, viewBox: "0 0 26 14", "aria-hidden": "true" });
    node(svg, "path", { class: "mean", d: "M2 7H24" });
    mark(svg, look(method), 13, 7, 4.2);
  }
  function controls() {
    fill(byId("metric"), metrics);
    const ranges = [["whole", "All values"], ["end", "Second half"]];
    const flat = gather(metric.key, axis.key).flatMap((m) => m.runs.map((r) => r.curve));
    if (metric.lines.some((l) => l.target) && !metric.log && flat.length) {
      // Where all that happens in the second half would be a strip at the edge, the drawing begins with that half.
      const half = Math.max(...flat.map((c) => c[c.length - 1][0])) / 2;
      const late = flat.flatMap((c) => c.filter((p) => p[0] >= half).map((p) => p[1]));
      const span = (list) => Math.max(...list) - Math.min(...list);
      const all = flat.flat().map((p) => p[1]);
      if (late.length > 1 && span([...late, ...linesWithin(late).map((l) => l.value)]) < 0.15 * span(all)) range = "end";
    }
    for (const [key, name] of ranges) {
      const button = element(byId("range"), "button", "", name);
      button.type = "button";
      button.dataset.range = key;
      button.setAttribute("aria-pressed", String(key === range));
      button.onclick = () => {
        range = key;
        for (const other of byId("range").children) other.setAttribute("aria-pressed", String(other === button));
        drawCurves();
      };
    }
    byId("metric").onchange = (event) => {
      shown = metrics.find((m) => m.key === event.target.value);
      drawCurves();
    };
    for (const item of axes) {
      const button = element(byId("axes"), "button", "", item.label);
      button.type = "button";
      button.dataset.axis = item.key;
      button.setAttribute("aria-pressed", String(item === axis));
      button.onclick = () => {
        axis = item;
        for (const other of byId("axes").children) other.setAttribute("aria-pressed", String(other === button));
        drawCurves();
        drawPanels();
      };
    }
    for (const method of methods) {
      const button = element(byId("legend"), "button");
      button.type = "button";
      button.dataset.method = method;
      button.setAttribute("aria-pressed", "true");
      button.title = `Show or hide ${method}`;
      swatch(button, method);
      element(button, "span", "", method);
      button.onclick = () => {
        if (!hidden.delete(method)) hidden.add(method);
        button.setAttribute("aria-pressed", String(!hidden.has(method)));
        drawCurves();
        drawPanels();
        drawCharts();
        if (hasKl) drawKl();
      };
    }
    if (data.runs.length > methods.length) {
      const label = element(byId("legend"), "label", "seeds");
      const box = element(label, "input");
      box.type = "checkbox";
      box.id = "show-seeds";
      box.checked = true;
      label.append("single seeds");
      box.onchange = () => {
        showSeeds = box.checked;
        drawCurves();
      };
    }
    if (byId("stages")) stageNames.forEach((stage, k) => {
      const item = element(byId("stages"), "span", "item");
      element(item, "span", `block s${k % 8}`);
      element(item, "span", "", stage);
    });
    if (hasKl) {
      byId("kl").hidden = false;
      fill(byId("kl-metric"), bought);
      byId("kl-metric").onchange = drawKl;
    }
    if (prompts.length) {
      byId("samples").hidden = false;
      prompts.forEach((entry, i) => {
        const first = entry.prompt.replace(/\s+/g, " ").trim();
        element(byId("prompt"), "option", "", `${i + 1} of ${prompts.length}: ${first.length > 70 ? `${first.slice(0, 70)}…` : first}`).value = String(i);
      });
      byId("prompt").onchange = (event) => { asked = Number(event.target.value); drawSamples(); };
      byId("previous").onclick = () => { asked -= 1; drawSamples(); };
      byId("following").onclick = () => { asked += 1; drawSamples(); };
      drawSamples();
    }
    byId("results-csv").onclick = () => download(resultsCsv(), "results.csv");
    byId("curves-csv").onclick = () => download(curvesCsv(), "curves.csv");
  }

  let last = 0;
  function drawAll() {
    last = document.documentElement.clientWidth;
    drawCurves();
    drawFinal();
    drawPairs();
    drawPanels();
    drawCost();
    if (hasKl) drawKl();
    drawCharts();
  }
  controls();
  drawAll();
  addEventListener("resize", () => {
    if (document.documentElement.clientWidth !== last) requestAnimationFrame(drawAll);
  });
})();
