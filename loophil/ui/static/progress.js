// Whether it learns: in words, in pictures by the newest versions, in curves, and what each update did. Asks anew while the tab is open and something
// has changed or a picture is due; what did not change is not drawn again.
let status = null;
let shown = null;    // the newest answer
let asked = 0;
const AGAIN = 3000;  // ms between two looks, however many versions come
const painted = {};

function changed(part, value) {
  const text = JSON.stringify(value);
  if (painted[part] === text) return false;
  painted[part] = text;
  return true;
}

function paintVerdict({ verdicts, current, agreement, taste, rounds, between }) {
  const newest = verdicts[0];
  const none = current === 0 ? 'Nothing was learned yet.' : 'Nobody has taken the blind test yet.';
  say('.verdict', newest ? `${verdictWords(newest)}.` : none);
  find('.verdict').dataset.better = newest && newest.low > 0.5 ? 'yes' : newest && newest.high < 0.5 ? 'no' : '';
  show('.test', current > 0);
  const made = status ? `${count(status.ratings, 'rated image')} so far, ${count(status.updates, 'update')}.` : '';
  const other = newest && newest.version !== current ? `v${current} is in use and was not tested yet.` : '';
  const self = agreement ? `Shown ${count(agreement.groups, 'group')} twice, you put ${percent(agreement.share)}% of the pairs in the same order.` : '';
  say('.facts', [made, other].filter(Boolean).join(' '));
  const understood = taste ? `Understands your taste: foretells ${percent(taste.share)}% (${percent(taste.low)} to ${percent(taste.high)}) of the pairs in the last ${count(taste.choices, 'choice')}.` : '';
  const others = between === null ? '' : `On the same pictures, raters agree with each other: ${between.toFixed(2)} (Krippendorff's alpha; 1 fully, 0 by chance).`;
  say('.taste', [understood, self, others, rounds].filter(Boolean).join(' '));
}

// Pictures never change: one that is there already is only moved.
const shownPictures = new Map();
function known(src, alt) {
  if (!shownPictures.has(src)) shownPictures.set(src, picture(src, alt));
  return shownPictures.get(src);
}

function paintGrid({ prompts, rows: all }) {
  const rows = all.filter((row) => Object.values(row.pictures).some(Boolean));
  if (!changed('grid', [prompts, rows])) return;
  find('.lh-grid thead tr').replaceChildren(make('th', '', ''), ...prompts.map((prompt) => make('th', '', prompt)));
  find('.lh-grid tbody').replaceChildren(...[...rows].reverse().map((row) => {
    const line = make('tr');
    const head = make('th', '', versionName(row.version, row.name));
    head.scope = 'row';
    line.append(head, ...prompts.map((prompt, i) => {
      const cell = make('td');
      const frame = make('span', 'frame');
      if (row.pictures[i]) frame.append(known(row.pictures[i], `${prompt}, drawn by ${versionName(row.version)}`));
      cell.append(frame);
      return cell;
    }));
    return line;
  }));
  show('.lh-scroll', rows.length > 0);
  show('.grid-empty', rows.length === 0);
}

function shape(tag, attributes) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const short = (value) => value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 1 ? 2 : 3);

function chart({ source, points }) {
  const [first, last] = [points[0], points[points.length - 1]];
  const values = points.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const at = ([version, value]) => [4 + 292 * (version - first[0]) / (last[0] - first[0]), high === low ? 45 : 84 - 78 * (value - low) / (high - low)];
  const name = source === 'stars' ? 'Stars, from people' : source;
  const svg = shape('svg', { viewBox: '0 0 300 90', preserveAspectRatio: 'none', role: 'img', 'aria-label': `${name}: from ${short(first[1])} to ${short(last[1])}` });
  svg.append(shape('polyline', { points: points.map((point) => at(point).join(',')).join(' ') }));
  const scale = make('p', 'lh-scale');
  scale.append(make('span', '', `${versionName(first[0])}: ${short(first[1])}`), make('span', '', `${short(low)} to ${short(high)}`), make('span', '', `${versionName(last[0])}: ${short(last[1])}`));
  const box = make('figure', 'lh-chart');
  box.append(make('figcaption', '', name), svg, scale);
  return box;
}

function paintCurves(curves) {
  const drawn = curves.filter(({ points }) => points.some(([, value]) => value !== points[0][1]));  // best and worst alone are three stars on average
  show('.scores', drawn.length > 0);
  if (changed('curves', drawn)) find('.lh-charts').replaceChildren(...drawn.map(chart));
}

function paintShares(log) {
  const newest = [...log].reverse().find((update) => update.status === 'committed');
  const shares = Object.entries(newest?.shares || {});
  show('.said', shares.length > 0);
  if (!changed('shares', shares)) return;
  find('.lh-shares').replaceChildren(...shares.flatMap(([source, share]) => {
    const bar = make('span', 'bar');
    bar.style.setProperty('--share', share);
    return [make('span', '', source), bar, make('span', '', `${percent(share)}%`)];
  }));
}

function line(update) {
  const when = new Date(update.at * 1000).toTimeString().slice(0, 8);
  if (update.status === 'running') return `${when}  update ${update.number} is running`;
  if (update.status === 'aborted') return `${when}  update ${update.number} was thrown away: ${update.reason}`;
  const facts = [count(update.images, 'image'), `${update.seconds.toFixed(1)} s`];
  if (update.approx_kl !== null) facts.push(`KL ${update.approx_kl.toPrecision(2)} nats a step`);
  if (update.kept !== null) facts.push(`${percent(update.kept)}% young enough for LOOP`);
  return `${when}  v${update.version} from ${facts.join(', ')}`;
}

function paintLog(log) {
  show('.log-empty', log.length === 0);
  show('.copy', log.length > 0);
  if (changed('log', log)) find('.lh-log').replaceChildren(...[...log].reverse().map((update) => make('li', '', line(update))));
}

watch('value', () => {
  const value = props.value || {};
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (!value.rows) return;
  shown = value;
  paintVerdict(value);
  paintGrid(value);
  paintCurves(value.curves);
  paintShares(value.log);
  paintLog(value.log);
});

const look = () => trigger('look', { rater: browserName(), who: personName() });

function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  status = event.detail;
  if (!visible()) return;
  const current = status.policy_version;
  const due = !shown || shown.rows.some((row) => Object.values(row.pictures).includes(''));
  const news = shown?.current !== current || (status.better?.n || 0) !== (shown?.verdicts[0]?.n || 0);
  const now = performance.now();
  if ((news || due) && now - asked > AGAIN) { asked = now; look(); }
}

// Gradio makes a tab when it is opened first, so the button there may come later.
function startTest(tries = 100) {
  const button = document.querySelector('.lh-panel .start:enabled');
  if (button?.offsetParent) button.click(); else if (tries > 0) setTimeout(() => startTest(tries - 1), 50);
}

find('.test').addEventListener('click', () => { openTab('Compare'); startTest(); });
find('.copy').addEventListener('click', () => navigator.clipboard?.writeText(findAll('.lh-log li').map((node) => node.textContent).join('\n')));
window.addEventListener('loophil:status', onStatus);
look();
