// The galleries of a report page: paged, filtered, sorted. Every text of the data goes through
// textContent. Pictures are in the page itself, or in packs that are loaded when they are needed.
"use strict";
(() => {
  const PER_PAGE = window.innerWidth < 600 ? 12 : 24;
  const EXTREMES = 6; // cards a row of best and worst
  const PACKS_KEPT = 96; // in memory
  const data = JSON.parse(document.getElementById("data").textContent);

  // --- pictures

  const packs = new Map(); // number -> promise of its pictures; in the order of their last use
  const waiting = new Map(); // number -> what to call with them
  window.picturePack = (number, pictures) => waiting.get(number)?.(pictures);

  function loadPack(number) {
    let pack = packs.get(number);
    packs.delete(number);
    pack ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      waiting.set(number, resolve);
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        packs.delete(number);
        reject(new Error("absent"));
      };
      script.src = `${data.folder}/pictures_${String(number).padStart(5, "0")}.js`;
      document.head.append(script);
    });
    packs.set(number, pack);
    for (const oldest of packs.keys()) {
      if (packs.size <= PACKS_KEPT) break;
      packs.delete(oldest);
    }
    return pack;
  }

  async function picture(id) {
    if (data.pictures) return data.pictures[id];
    const pictures = await loadPack(Math.floor(id / data.packSize));
    return pictures[id % data.packSize];
  }

  // --- cards

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Pictures are fetched when their frames, which have their size already, come near the screen.
  const fill = new WeakMap(); // frame -> what fetches its picture
  const near = new IntersectionObserver(
    (changes) => {
      for (const { isIntersecting, target } of changes) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        fill.get(target)();
      }
    },
    { rootMargin: "1000px" },
  );

  function frame(id, description) {
    const made = element("div", "frame");
    if (id < 0) {
      made.textContent = "no image";
      return made;
    }
    fill.set(made, () => {
      const image = element("img");
      image.alt = description;
      image.decoding = "async";
      picture(id).then(
        (source) => {
          if (source) {
            image.src = source;
            made.append(image);
          } else made.textContent = "unreadable";
        },
        () => {
          made.textContent = `${data.folder} is not beside this page`;
        },
      );
    });
    near.observe(made);
    return made;
  }

  function labelled(label, id, description) {
    const made = element("div");
    made.append(element("span", "label", label), frame(id, description));
    return made;
  }

  function scoreLine(gallery, entry) {
    const parts = gallery.scores.flatMap((score, place) => {
      const value = entry.scores?.[place];
      return value === null || value === undefined
        ? []
        : [`${score.label} ${value.toFixed(Math.abs(value) >= 20 ? 1 : 3)}`];
    });
    return parts.length ? [element("p", "score", parts.join(" · "))] : [];
  }

  const cards = {
    painted(gallery, entry) {
      const card = element("div", "card");
      const pair = element("div", "pair");
      pair.append(
        labelled("painted", entry.pictures[0], `painted: ${entry.text}`),
        labelled("real", entry.pictures[1], `real image of: ${entry.text}`),
      );
      card.append(pair, element("p", "", entry.text), ...scoreLine(gallery, entry));
      return card;
    },
    written(gallery, entry) {
      const card = element("div", "card side");
      const texts = element("div");
      const list = element("ul");
      list.append(...entry.references.map((text) => element("li", "", text)));
      texts.append(element("p", "", entry.text || "(empty)"), list, ...scoreLine(gallery, entry));
      card.append(frame(entry.pictures[0], entry.text), texts);
      return card;
    },
  };

  // --- finding and sorting

  // " two cats on a red house " : a typed word finds the words that begin with it
  const words = (text) => ` ${text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim()} `;

  function finder(gallery) {
    let normal = null; // made when somebody types
    return (typed) => {
      const wanted = words(typed).trim();
      const all = gallery.entries.map((_, place) => place);
      if (!wanted) return all;
      normal ??= gallery.entries.map((entry) => words([entry.text, ...entry.references].join(" ")));
      const parts = wanted.split(" ").map((word) => ` ${word}`);
      return all.filter((place) => parts.every((part) => normal[place].includes(part)));
    };
  }

  function ranked(gallery, places, score, direction) {
    const value = (place) => gallery.entries[place].scores?.[score] ?? null;
    return places
      .filter((place) => value(place) !== null)
      .sort((one, other) => direction * (value(one) - value(other)) || one - other);
  }

  // --- a gallery

  function open(section) {
    const name = section.dataset.gallery;
    const gallery = data.galleries[name];
    const find = finder(gallery);
    const grid = section.querySelector(".grid");
    const [filter, order] = [section.querySelector("input"), section.querySelector("select")];
    const [first, back, next, last] = section.querySelectorAll("button");
    const output = section.querySelector("output");
    let places = [];
    let page = 0;

    gallery.scores.forEach((score, place) => {
      order.append(new Option(`${score.label}, best first`, `${place} -1`));
      order.append(new Option(`${score.label}, worst first`, `${place} 1`));
    });
    order.closest("label").hidden = !gallery.scores.length;

    function show() {
      const pages = Math.max(1, Math.ceil(places.length / PER_PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      const from = page * PER_PAGE;
      const part = places.slice(from, from + PER_PAGE);
      grid.replaceChildren(...part.map((place) => cards[name](gallery, gallery.entries[place])));
      if (!part.length) grid.append(element("p", "none", "Nothing has all of these words."));
      const count = places.length.toLocaleString("en");
      output.textContent = part.length ? `${from + 1}–${from + part.length} of ${count}` : "none";
      first.disabled = back.disabled = page === 0;
      next.disabled = last.disabled = page === pages - 1;
    }

    function search() {
      places = find(filter.value);
      if (order.value) places = ranked(gallery, places, ...order.value.split(" ").map(Number));
      page = 0;
      show();
    }

    let timer = 0;
    filter.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(search, 120);
    });
    order.addEventListener("change", search);
    [
      [first, () => 0],
      [back, () => page - 1],
      [next, () => page + 1],
      [last, () => Infinity],
    ].forEach(([button, target]) =>
      button.addEventListener("click", () => {
        page = target();
        show();
      }),
    );
    search();
  }

  function extremes(grid) {
    const [name, end] = grid.dataset.extremes.split(" ");
    const gallery = data.galleries[name];
    const score = gallery.scores.findIndex((found) => found.name.endsWith("clip_score"));
    const all = gallery.entries.map((_, place) => place);
    const chosen = ranked(gallery, all, score, end === "best" ? -1 : 1).slice(0, EXTREMES);
    grid.append(...chosen.map((place) => cards[name](gallery, gallery.entries[place])));
  }

  document.querySelectorAll("[data-gallery]").forEach(open);
  document.querySelectorAll("[data-extremes]").forEach(extremes);
})();
