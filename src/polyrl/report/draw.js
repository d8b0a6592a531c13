// Draws a chart from its description (runtime/drawing.py): in pages, in notebooks and in pictures that are files.
// It knows no document: `node(parent, name, attributes, text)` makes an element, `widthOf(text, font)` measures one.
"use strict";
const polyrlDraw = ({ node, widthOf }) => {
  const at = (value) => Math.round(value * 10) / 10;

  // ---- numbers -----------------------------------------------------------------------------------------------------
  const minus = (text) => text.replace("-", "−");
  const grouped = (value, least, most) => {
    const [whole, rest = ""] = Math.abs(value).toFixed(most).split(".");
    const kept = rest.slice(0, least) + rest.slice(least).replace(/0+$/, "");
    const sign = value < 0 && (Number(whole) || Number(rest)) ? "-" : "";
    return sign + whole.replace(/\B(?=(\d{3})+$)/g, ",") + (kept ? `.${kept}` : "");
  };
  const scientific = (value, digits = 1) => value.toExponential(digits).replace(/e\+?/, "e");
  // A value of a log metric takes two or three figures, wherever its point stands.
  function figures(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e5) return minus(scientific(value).replace("e-", "e−"));
    const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
    return minus(grouped(value, digits, digits));
  }
  const digitsOf = (step) => [0, 1, 2, 3, 4, 5, 6, 7, 8].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6 * step * 10 ** d) ?? 8;
  function short(value, step) {
    const size = Math.max(Math.abs(value), step || 0);
    for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size < unit) continue;
      if (value === 0) return "0";
      const digits = step ? digitsOf(step / unit) : Math.abs(value) / unit < 10 ? 2 : 1;
      return minus((value / unit).toFixed(Math.min(4, digits)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "")) + letter;
    }
    if (value === 0) return "0";
    const digits = step ? digitsOf(step) : Math.max(0, 3 - Math.ceil(Math.log10(size + 1e-12)));
    return minus(value.toFixed(Math.min(8, digits)));
  }
  function ticks(low, high, wanted) {
    const raw = (high - low) / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
    const values = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) values.push(k * step);
    return { values, step };
  }
  function domain(values, pad = 0.06, bounded = false, log = false) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const natural = !log && low >= 0;
    if (!(high > low)) [low, high] = [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
    if (natural) low = Math.max(0, low);
    const room = (high - low) * pad;
    const [under, over] = [low - room, high + room];
    if (log) return [under, over];
    // A share cannot leave [0, 1], a length or a distance cannot be negative: nor does its axis.
    return [low >= 0 ? Math.max(0, under) : under, bounded && high <= 1 ? Math.min(1, over) : over];
  }
  const raised = (digits) => [...String(digits)].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(d)] ?? "⁻").join("");
  function power(exponent) {
    if (exponent < -3 || exponent > 4) return `10${raised(exponent)}`;
    return exponent < 0 ? (10 ** exponent).toFixed(-exponent) : grouped(10 ** exponent, 0, 0);
  }
  // Ticks between two decimal logarithms: powers of ten, or within a decade or two also 2 and 5, or an even scale.
  function logTicks(low, high, wanted) {
    const decades = high - low;
    if (decades < 0.7) {
      const { values, step } = ticks(10 ** low, 10 ** high, wanted);
      return { values: values.filter((v) => v > 0).map(Math.log10), text: (v) => short(10 ** v, step), minor: [] };
    }
    const stride = Math.max(1, Math.ceil(decades / Math.max(2, wanted)));
    const between = (list) => list.filter((v) => v >= low - 1e-9 && v <= high + 1e-9);
    const first = Math.floor(low);
    const powers = Array.from({ length: Math.ceil(high) - first + 1 }, (_, k) => first + k);
    const some = powers.filter((k) => k % stride === 0);
    const minor = stride === 1 && decades <= 4 ? between(powers.flatMap((k) => [2, 3, 4, 5, 6, 7, 8, 9].map((m) => k + Math.log10(m)))) : [];
    if (decades < 1.8 && wanted >= 3) {
      const values = between(powers.flatMap((k) => [1, 2, 5].map((m) => k + Math.log10(m))));
      return { values, text: (v) => figures(Number((10 ** v).toPrecision(1))).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""), minor };
    }
    return { values: between(some), text: power, minor };
  }
  function evenTicks(low, high, wanted) {
    let { values, step } = ticks(low, high, wanted);
    for (let more = 1; values.length < 2 && more < 4; more++) ({ values, step } = ticks(low, high, wanted + more)); // one number is no scale
    return { values, text: (v) => short(v, step), minor: [] };
  }
  const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

  // ---- marks -------------------------------------------------------------------------------------------------------
  const colour = (look) => `c${look % 8}`;
  function path(points, sx, sy) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${at(sx(x))} ${at(sy(y))}`).join("");
  }
  // Shape and colour both tell a method, so neither has to be seen alone.
  function mark(parent, look, x, y, size, className = "mark", own = true) {
    const s = size;
    const shape = [
      `M${-s} 0A${s} ${s} 0 1 1 ${s} 0A${s} ${s} 0 1 1 ${-s} 0Z`,
      `M${-s * 0.9} ${-s * 0.9}H${s * 0.9}V${s * 0.9}H${-s * 0.9}Z`,
      `M0 ${-s * 1.25}L${s * 1.25} 0L0 ${s * 1.25}L${-s * 1.25} 0Z`,
      `M0 ${-s * 1.15}L${s * 1.1} ${s * 0.85}H${-s * 1.1}Z`,
    ][look % 4];
    return node(parent, "path", { class: own ? `${className} ${colour(look)}` : className, d: shape, transform: `translate(${at(x)} ${at(y)})` });
  }
  // Labels that would lie on each other move apart, in order, and stay above `bottom`.
  function spread(labels, bottom, step = 16) {
    labels.sort((a, b) => a.place - b.place);
    for (let i = 1; i < labels.length; i++) labels[i].place = Math.max(labels[i].place, labels[i - 1].place + step);
    for (let i = labels.length - 1; i >= 0; i--) {
      labels[i].place = Math.min(labels[i].place, i === labels.length - 1 ? bottom : labels[i + 1].place - step);
    }
    return labels;
  }
  // A name in lines that have room: broken between its words, and a word that is too long after a sign, or anywhere.
  function broken(name, room, font) {
    const fits = (text) => widthOf(text, font) <= room;
    const pieces = (word, [signs, ...others]) => (fits(word) ? [word] : signs ? word.match(signs).flatMap((piece) => pieces(piece, others)) : [...word]);
    const lines = [];
    for (const word of name.split(" ")) {
      pieces(word, [/[^,+]+[,+]*|[,+]+/g, /[^(=_/]+[(=_/]*|[(=_/]+/g]).forEach((piece, i) => {
        const joined = `${lines[lines.length - 1]}${i ? "" : " "}${piece}`;
        if (lines.length && (i || fits(word)) && fits(joined)) lines[lines.length - 1] = joined;
        else lines.push(piece);
      });
    }
    return lines;
  }
  const LINE = 16; // from one line of a name to the next
  // Names of rows, in lines: at the left of wide drawings, above each row of narrow ones, where a text that has no room
  // beside the name stands below it. `height` is that of a row, `lines` those of its name.
  function named(items, { width, font, step, gutter, text = () => 0 }) {
    return items.map((item) => {
      const lines = broken(item.name, gutter ? gutter - 20 : width, font);
      if (gutter) return { lines, below: false, height: Math.max(step, lines.length * LINE + 14) };
      const below = text(item) > 0 && widthOf(lines[lines.length - 1], font) + text(item) + 14 > width;
      return { lines, below, height: step + (lines.length - 1 + (below ? 1 : 0)) * LINE };
    });
  }
  // Room at the left for names, at most a third of the drawing.
  const gutterOf = (items, width, font) => Math.min(Math.max(260, width / 3), Math.max(...items.map((i) => widthOf(i.name, font))) + 20);
  function nameLines(svg, lines, x, y) {
    lines.forEach((text, i) => node(svg, "text", { class: "label", x, y: y + i * LINE }, text));
  }
  const above = (heights, i) => heights.slice(0, i).reduce((sum, h) => sum + h, 0);
  const lineText = (l) => `${l.name}${l.text ? ` ${minus(l.text)}` : ""}`;
  const lineClass = (l, base) => `${base}${l.target ? " target" : ""}`;

  // ---- curves over an axis -----------------------------------------------------------------------------------------
  function frame(svg, { width, height, x, y, right = 16, left = 52, small = false }) {
    const [top, bottom] = small ? [24, 24] : [30, 46];
    const sy = scale(y.domain, height - bottom, top);
    const up = (y.log ? logTicks : evenTicks)(...y.domain, Math.max(small ? 2 : 3, Math.floor((height - top - bottom) / (small ? 30 : 46))));
    left = Math.max(left, ...up.values.map((value) => widthOf(up.text(value), "12px") + 12));
    const sx = scale(x.domain, left, width - right);
    const wanted = Math.max(2, Math.floor((width - left - right) / (width < 640 ? 62 : 90)));
    const across = x.log ? logTicks(...x.domain, wanted) : ticks(...x.domain, wanted);
    const word = x.log ? across.text : (value) => short(value, across.step);
    if (x.log) for (const value of across.minor) node(svg, "line", { class: "grid minor", x1: at(sx(value)), x2: at(sx(value)), y1: top, y2: height - bottom });
    for (const value of up.minor) node(svg, "line", { class: "grid minor", x1: left, x2: width - right, y1: at(sy(value)), y2: at(sy(value)) });
    for (const value of up.values) {
      node(svg, "line", { class: "grid", x1: left, x2: width - right, y1: at(sy(value)), y2: at(sy(value)) });
      node(svg, "text", { x: left - 8, y: at(sy(value)) + 4, "text-anchor": "end" }, up.text(value));
    }
    for (const value of across.values) {
      node(svg, "text", { x: at(sx(value)), y: height - bottom + 18, "text-anchor": "middle" }, word(value));
    }
    node(svg, "line", { class: "base", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
    if (y.title) node(svg, "text", { class: "title y-title", x: 0, y: 13 }, y.title);
    if (x.title) node(svg, "text", { class: "title x-title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.title);
    return { svg, width, height, sx, sy, top, bottom: height - bottom, left, right: width - right };
  }
  // The room at the right of the curves for the names of series and of lines, if they are short enough to stand there;
  // where nothing else names the series, the lines' names give way.
  function besides({ width, series, lines = [], beside = 720, alone = false }) {
    const longest = (texts, font) => Math.max(0, ...texts.map((text) => widthOf(text, font)));
    const names = series.length > 1 || alone ? longest(series.map((s) => s.name), "600 13px") : 0;
    const all = Math.max(names, longest(lines.map(lineText), "12.5px"));
    if (width >= beside && all > 0 && all < 200) return { room: all, lined: true };
    return { room: alone ? names : 0, lined: false };
  }
  function curves(svg, chart) {
    const { series, lines = [], small = false } = chart;
    const { room, lined } = small || chart.unnamed ? { room: 0, lined: false } : besides(chart);
    const area = frame(svg, { right: small ? 10 : room ? room + 26 : chart.unnamed ? 16 : 14, left: small ? 36 : 52, ...chart });
    const { sx, sy } = area;
    if (chart.clip) node(node(svg, "clipPath", { id: "curves-clip" }), "rect", { x: area.left, y: area.top - 8, width: area.right - area.left + 8, height: area.bottom - area.top + 8 });
    for (const l of lines) {
      const y = at(sy(l.value));
      node(svg, "line", { class: lineClass(l, "line"), x1: area.left, x2: area.right, y1: y, y2: y, "data-line": l.name });
    }
    for (const s of series) {
      const group = node(svg, "g", { class: `series ${colour(s.look)}`, "data-method": s.name, ...(chart.clip ? { "clip-path": "url(#curves-clip)" } : {}) });
      if (s.band) {
        const edge = [...s.band.map(([x, , high]) => [x, high]), ...s.band.map(([x, low]) => [x, low]).reverse()];
        node(group, "path", { class: "band", d: `${path(edge, sx, sy)}Z` });
      }
      for (const curve of s.curves || []) {
        node(group, "path", { class: curve.kind === "lost" ? "seed lost" : curve.kind, d: path(curve.points, sx, sy) });
        if (curve.dots) for (const [x, y] of curve.points) node(group, "circle", { class: "dot", cx: at(sx(x)), cy: at(sy(y)), r: 2.2 });
        const [x, y] = curve.points[curve.points.length - 1].map((v, i) => at(i ? sy(v) : sx(v)));
        if (curve.end) mark(group, s.look, sx(curve.points[curve.points.length - 1][0]), sy(curve.points[curve.points.length - 1][1]), 3.2, "dot");
        if (curve.lost) node(group, "path", { class: "cross", d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8` });
      }
      if (s.mean) node(group, "path", { class: "mean", d: path(s.mean, sx, sy) });
      if (s.end && chart.unnamed) mark(group, s.look, sx(s.end[0]), sy(s.end[1]), chart.size || 5.5);
    }
    if (chart.unnamed) return area;
    const ends = series.filter((s) => s.end).map((s) => ({ series: s, x: sx(s.end[0]), y: sy(s.end[1]), place: sy(s.end[1]) }));
    const labels = lines.map((l) => ({ line: l, place: sy(l.value) }));
    const names = room && (series.length > 1 || chart.alone);
    spread([...(names ? ends : []), ...(lined ? labels : [])], area.bottom);
    for (const { series: s, x, y, place } of ends) {
      mark(svg, s.look, x, y, 4.5);
      if (names) node(svg, "text", { class: `own ${colour(s.look)}`, x: at(x) + 12, y: at(place) + 4 }, s.name);
    }
    if (!lined) spread(labels, area.bottom, 15);
    for (const { line: l, place } of labels) {
      const where = lined ? { x: area.right + 12, y: at(place) + 4 } : { x: area.left + 6, y: at(place) - 5 };
      node(svg, "text", { class: lineClass(l, "line-label"), ...where }, lineText(l));
    }
    return area;
  }

  // ---- rows of dots with their intervals ---------------------------------------------------------------------------
  // Values are in the drawing's units: logarithms where `log`. `zero` is the value without a difference.
  function rows(svg, { items, width, domain: [low, high], title, zero = null, log = false, lines = [], shade, bare = false }) {
    const wide = width >= 640;
    const gutter = bare ? 0 : wide ? gutterOf(items, width, "600 13px") : 8;
    const tail = bare ? 0 : wide ? Math.max(...items.map((i) => widthOf(i.text, "13px"))) + 20 : 8;
    const step = bare ? 40 : wide ? 50 : 64;
    const heads = bare ? [] : named(items, { width, font: "600 13px", step, gutter: wide ? gutter : 0, text: (i) => widthOf(i.text, "13px") });
    const heights = bare ? items.map(() => step) : heads.map((h) => h.height);
    const has = zero !== null;
    const sx = bare ? scale([low, high], 0, width) : scale([low, high], gutter + 4, width - tail - 4);
    // The names of lines stand above the rows, on as many levels as they need to keep apart.
    const levels = [];
    const marked = lines.map((l) => {
      const [x, breadth] = [sx(l.value), widthOf(`${l.name} ${l.text}`, "12.5px")];
      const middle = Math.min(Math.max(x, gutter + breadth / 2), width - breadth / 2);
      if (!l.name) return { line: l, x, middle, level: 0 };
      let level = levels.findIndex((taken) => taken.every(([from, to]) => middle + breadth / 2 + 12 < from || middle - breadth / 2 - 12 > to));
      if (level < 0) level = levels.push([]) - 1;
      levels[level].push([middle - breadth / 2, middle + breadth / 2]);
      return { line: l, x, middle, level };
    });
    const head = levels.length * 17;
    const bottom = bare ? items.length * step : head + above(heights, items.length) + 12;
    const top = bare ? 0 : head + 6;
    if (shade) node(svg, "rect", { class: "wanted", x: at(sx(shade[0])), y: top, width: at(sx(shade[1]) - sx(shade[0])), height: bottom - top });
    const across = (log ? logTicks : evenTicks)(low, high, Math.max(2, Math.floor((width - gutter - tail) / (wide ? 90 : 62))));
    for (const value of across.minor) node(svg, "line", { class: "grid minor", x1: at(sx(value)), x2: at(sx(value)), y1: top, y2: bottom });
    for (const value of across.values) {
      const isZero = has && Math.abs(value - zero) < (high - low) * 1e-9;
      node(svg, "line", { class: isZero ? "zero" : "grid", x1: at(sx(value)), x2: at(sx(value)), y1: top, y2: bottom });
      node(svg, "text", { x: at(sx(value)), y: bottom + 18, "text-anchor": "middle" }, across.text(isZero ? zero : value));
    }
    if (has && !across.values.some((v) => Math.abs(v - zero) < (high - low) * 1e-9)) node(svg, "line", { class: "zero", x1: at(sx(zero)), x2: at(sx(zero)), y1: top, y2: bottom });
    for (const { line: l, x, middle, level } of marked) {
      const y = head - level * 17;
      node(svg, "line", { class: lineClass(l, "line"), x1: at(x), x2: at(x), y1: bare ? 0 : y - 1, y2: bottom, "data-line": l.name });
      if (l.name) node(svg, "text", { class: lineClass(l, "line-label"), x: at(middle), y: y - 5, "text-anchor": "middle" }, lineText(l));
    }
    node(svg, "line", { class: "base", x1: gutter, x2: width - tail, y1: bottom, y2: bottom });
    if (title) node(svg, "text", { class: "title x-title", x: (gutter + width - tail) / 2, y: bottom + 40, "text-anchor": "middle" }, title);
    const places = items.map((item, i) => (bare ? i * step + 18 : head + 12 + above(heights, i) + (wide ? heights[i] / 2 : heights[i] - step * 0.32)));
    if (!bare) items.forEach((item, i) => {
      const { lines: parts, below } = heads[i];
      const last = places[i] - 21; // of a narrow drawing, the line right above the row
      nameLines(svg, parts, 0, wide ? places[i] + 4 - ((parts.length - 1) * LINE) / 2 : last - (parts.length - (below ? 0 : 1)) * LINE);
      const text = wide ? { x: width - tail + 16, y: places[i] + 4 } : below ? { x: 0, y: last } : { x: width, y: last, "text-anchor": "end" };
      node(svg, "text", { class: "value", ...text }, item.text);
    });
    items.forEach((item, i) => row(svg, item, sx, places[i], bare));
    return bottom + (title ? 50 : 22);
  }
  function row(svg, item, sx, y, bare) {
    const own = item.look === null ? (item.tone ? `tone-${item.tone}` : "neutral") : colour(item.look);
    const group = node(svg, "g", { class: own, ...(item.method === undefined ? {} : { "data-method": item.method }) });
    if (item.start !== undefined && item.start !== null) node(group, "path", { class: "start", d: `M${at(sx(item.start))} ${y - 11}v24` });
    const { dots = [], bar, value } = item;
    const coloured = item.look !== null;
    if (item.capped) {
      if (bar) node(group, "path", { class: "bar", d: `M${at(sx(bar[0]))} ${y}H${at(sx(bar[1]))}M${at(sx(bar[0]))} ${y - 5}v10M${at(sx(bar[1]))} ${y - 5}v10` });
      node(group, "circle", { class: `mark${item.open ? " open" : ""}`, cx: at(sx(value)), cy: y, r: 6 });
      return;
    }
    const alone = dots.length === 1 && !bar;
    dots.forEach((d, k) => {
      const place = alone ? y : y + 9 + (((k * 2) % 3) - 1) * 1.6;
      const dot = mark(group, item.look ?? 0, sx(d.value), place, alone ? 5.6 : 3.4, alone ? "mark" : "dot", coloured);
      if (d.title) node(dot, "title", {}, d.title);
    });
    if (bar) node(group, "line", { class: bare ? "bar thick" : "bar", x1: at(sx(bar[0])), x2: at(sx(bar[1])), y1: y - 5, y2: y - 5 });
    if (!alone && value !== null) mark(group, item.look ?? 2, sx(value), y - 5, 5.6, bare ? "mark plain" : "mark", coloured);
  }

  // ---- bars made of pieces -----------------------------------------------------------------------------------------
  function stackedNames({ items, width }) {
    const gutter = width >= 640 ? gutterOf(items, width, "13px") : 0;
    return { gutter, heads: named(items, { width, font: "13px", step: gutter ? 38 : 54, gutter }) };
  }
  function stacked(svg, { items, pieces, width, title }) {
    const largest = Math.max(...items.map((i) => i.pieces.reduce((sum, p) => sum + p, 0))) || 1;
    const wide = width >= 640;
    const { gutter, heads } = stackedNames({ items, width });
    const heights = heads.map((h) => h.height);
    const bottom = above(heights, items.length) + 6;
    const sx = scale([0, largest], gutter, width - 64);
    const across = ticks(0, largest, Math.max(2, Math.floor((width - gutter) / (wide ? 110 : 70))));
    for (const value of across.values) {
      node(svg, "line", { class: "grid", x1: at(sx(value)), x2: at(sx(value)), y1: 4, y2: bottom });
      node(svg, "text", { x: at(sx(value)), y: bottom + 18, "text-anchor": value ? "middle" : "start" }, short(value, across.step));
    }
    node(svg, "text", { class: "title x-title", x: (gutter + width - 64) / 2, y: bottom + 40, "text-anchor": "middle" }, title);
    items.forEach((item, i) => {
      const { lines } = heads[i];
      const top = 6 + above(heights, i) + (wide ? heights[i] / 2 - 13 : heights[i] - 32);
      nameLines(svg, lines, 0, (wide ? top + 17 - ((lines.length - 1) * LINE) / 2 : top - 6 - (lines.length - 1) * LINE));
      let from = 0;
      item.pieces.forEach((amount, k) => {
        const breadth = sx(from + amount) - sx(from);
        if (breadth > 0.3) {
          const bar = node(svg, "rect", { class: `block-bar s${k % 8}`, x: at(sx(from)), y: top, width: at(breadth), height: 26 });
          node(bar, "title", {}, `${item.name}, ${pieces[k]}: ${short(amount)} s`);
        }
        from += amount;
      });
      node(svg, "text", { class: "value", x: at(sx(from)) + 8, y: top + 17 }, item.text);
    });
  }
  const stackedHeight = (chart) => stackedNames(chart).heads.reduce((sum, h) => sum + h.height, 52);

  // ---- rows of spans, as Gantt charts have them --------------------------------------------------------------------
  function spans(svg, { names, items, width, domain: [low, high], title, step }) {
    const gutter = Math.max(...names.map((name) => widthOf(name, "13px"))) + 12;
    const sx = scale([low, high], gutter, width - 16);
    const bottom = names.length * step + 4;
    const across = ticks(low, high, Math.max(2, Math.floor((width - gutter) / 90)));
    for (const value of across.values) {
      node(svg, "line", { class: "grid", x1: at(sx(value)), x2: at(sx(value)), y1: 0, y2: bottom });
      node(svg, "text", { x: at(sx(value)), y: bottom + 18, "text-anchor": "middle" }, short(value, across.step));
    }
    names.forEach((name, i) => {
      node(svg, "text", { class: "value", x: 0, y: at((i + 0.5) * step + 4) }, name);
      for (const span of items[i]) {
        const [x, breadth] = [sx(span.low), sx(span.high) - sx(span.low)];
        const own = `span ${span.look === null ? "neutral" : `s${span.look % 8}`}${span.faint ? " faint" : ""}`;
        const bar = node(svg, "rect", { class: own, x: at(x), y: at(i * step + 4), width: at(breadth), height: step - 8 });
        if (span.title) node(bar, "title", {}, span.title);
        if (span.text && widthOf(span.text, "12px") + 4 < breadth) node(svg, "text", { class: "in-span", x: at(x + breadth / 2), y: at((i + 0.5) * step + 4), "text-anchor": "middle" }, span.text);
      }
    });
    node(svg, "line", { class: "base", x1: at(gutter), x2: width - 16, y1: bottom, y2: bottom });
    node(svg, "text", { class: "title x-title", x: at((gutter + width - 16) / 2), y: bottom + 40, "text-anchor": "middle" }, title);
  }

  // ---- several charts and words on one sheet -----------------------------------------------------------------------
  function words(svg, { lines, size = 13, weight = 400, tone = "" }) {
    const own = node(svg, "g", { class: tone ? `tone-${tone}` : "" });
    lines.forEach((text, i) => node(own, "text", { class: `words${tone === "soft" ? " soft" : tone ? " told" : ""}`, x: 0, y: at(size + i * size * 1.25), style: `font-size:${size}px;font-weight:${weight}` }, text));
  }
  const kinds = { curves, rows, stacked, spans, words };
  function sheet(svg, { items }) {
    for (const { at: [x, y], kind, ...chart } of items) kinds[kind](node(svg, "g", { class: "chart", transform: `translate(${at(x)} ${at(y)})` }), chart);
  }
  return { at, minus, grouped, figures, short, scientific, domain, colour, mark, lineText, stackedHeight, curves, rows, stacked, sheet };
};
