// What is wrong with how a page lies on its viewport: wider than it, text cut off, texts on each other, text hard to read.
(() => {
  const found = [];
  const name = (element) => `${element.tagName.toLowerCase()}${element.id ? "#" + element.id : ""}.${String(element.getAttribute("class") || "")}`;
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide in ${width}`);
  const scrolls = (element) => element.closest(".scroll, pre");
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("script, style, .skip, title") || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width < 1 || box.height < 1) continue;
      texts.push({ node, parent, box, text: node.textContent.trim().slice(0, 40) });
    }
  }
  for (const { parent, box, text } of texts) {
    const svg = parent.closest("svg");
    if (!scrolls(parent) && (box.left < -0.5 || box.right > width + 0.5)) found.push(`beyond the viewport: "${text}" ${box.left} to ${box.right}`);
    if (svg) {
      const frame = svg.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 2 || box.bottom > frame.bottom + 2) found.push(`outside its picture: "${text}" ${box.left - frame.left},${box.top - frame.top} to ${box.right - frame.left},${box.bottom - frame.top} of ${frame.width}x${frame.height}`);
      const size = parseFloat(getComputedStyle(parent).fontSize) * frame.width / svg.viewBox.baseVal.width;
      if (size < 8.5) found.push(`only ${size.toFixed(1)} px high: "${text}"`);
    } else if (parseFloat(getComputedStyle(parent).fontSize) < 12) found.push(`small: "${text}"`);
    for (let up = parent; up && up !== document.body; up = up.parentElement) {
      if (up.matches(".scroll, pre")) break;
      const style = getComputedStyle(up);
      if (style.overflowX !== "visible" && up.scrollWidth > up.clientWidth + 1 && up.clientWidth) found.push(`clipped in ${name(up)}: "${text}"`);
    }
  }
  const shrink = (box) => { const air = Math.min(box.height * 0.22, 4); return { left: box.left + 0.75, right: box.right - 0.75, top: box.top + air, bottom: box.bottom - air }; };
  const sorted = texts.map((entry) => ({ ...entry, small: shrink(entry.box) })).sort((a, b) => a.small.top - b.small.top);
  for (let i = 0; i < sorted.length; i++) {
    for (let j = i + 1; j < sorted.length && sorted[j].small.top < sorted[i].small.bottom; j++) {
      const [a, b] = [sorted[i], sorted[j]];
      if (a.node === b.node) continue;
      if (a.small.left < b.small.right && b.small.left < a.small.right) found.push(`on each other: "${a.text}" and "${b.text}"`);
    }
  }
  const channel = (value) => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (text) => { const n = (text.match(/[\d.]+/g) || []).map(Number); return n.length < 3 || n[3] === 0 ? null : n.slice(0, 3); };
  const behind = (element) => { for (let up = element; up; up = up.parentElement) { const c = colour(getComputedStyle(up).backgroundColor); if (c) return c; } return [255, 255, 255]; };
  const seen = new Set();
  for (const { parent, text } of texts) {
    const svg = parent.closest("svg");
    const style = getComputedStyle(parent);
    // A number in a cell of the block diagram stands on the cell: what is drawn right before it.
    const under = svg && parent.previousElementSibling;
    let back = behind(svg ? svg.parentElement : parent);
    if (svg) {
      const box = parent.getBoundingClientRect();
      const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
      for (const path of svg.querySelectorAll("path")) {
        if (path.closest("defs")) continue;
        const fill = getComputedStyle(path).fill, place = path.getBoundingClientRect();
        if (fill === "none" || !colour(fill) || getComputedStyle(path).opacity !== "1") continue;
        if (place.left <= x && x <= place.right && place.top <= y && y <= place.bottom) back = colour(fill);
      }
    }
    const front = colour(svg ? style.fill : style.color);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    const key = `${front} on ${back}`;
    if (contrast < 4.5 && !seen.has(key)) { seen.add(key); found.push(`contrast ${contrast.toFixed(2)}: "${text}" ${key}`); }
  }
  return found;
})()
