// The strip of one prompt and seed over the versions, and the versions with a way back. Asks anew when a version was published.
let shownVersion = -1;
let status = null;
let stripKey = '';

function paintStrip(strip) {
  const key = JSON.stringify(strip);
  if (key === stripKey) return;
  stripKey = key;
  const tiles = strip.map(({ version, src }) => {
    const tile = make('figure', 'lh-tile');
    const frame = make('span', 'frame');
    frame.append(picture(src, `drawn by version ${version}`));
    tile.append(frame, make('figcaption', '', version === 0 ? 'base' : `v${version}`));
    return tile;
  });
  find('.strip').replaceChildren(...tiles);
  find('.strip').scrollLeft = find('.strip').scrollWidth;
  show('.strip-empty', strip.length === 0);
}

function paintVersions(value) {
  find('tbody').replaceChildren(...value.versions.map((version) => {
    const row = make('tr');
    const name = version.number === 0 ? 'base' : `v${version.number}`;
    const from = version.kind === 'rollback' ? `back to v${version.parent}` : version.parent === null ? '' : `v${version.parent}`;
    const last = make('td');
    if (version.number === value.current) last.append(make('span', 'lh-tag', 'in use'));
    else if (status === null || status.may_teach) {
      const button = make('button', 'lh-button', 'Use this version');
      button.type = 'button';
      pressedTwice(button, 'Press again to go back', () => trigger('go_back', { version: version.number }));
      last.append(button);
    }
    row.append(make('td', '', name), make('td', '', age(value.now - version.created)), make('td', '', from), make('td', '', version.ratings), last);
    return row;
  }));
}

watch('value', () => {
  const value = props.value || {};
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (!value.versions) return;
  shownVersion = value.current;
  paintStrip(value.strip);
  paintVersions(value);
});

let asked = 0;
function onStatus(event) {
  if (!element.isConnected) { window.removeEventListener('loophil:status', onStatus); return; }
  status = event.detail;
  const now = performance.now();
  const stripLags = find('.strip').children.length === 0 || stripKey.lastIndexOf(`"version":${status.policy_version},`) < 0;
  if (visible() && (status.policy_version !== shownVersion || (stripLags && now - asked > 3000))) { asked = now; trigger('look'); }
}

window.addEventListener('loophil:status', onStatus);
trigger('look');
