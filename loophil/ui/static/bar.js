// The bar: the loop's snapshot with ages, Pause and Resume. Other components hear of it by the window's event 'loophil:status'.
let status = null;
let received = 0;

function paint() {
  const quiet = (performance.now() - received) / 1000;
  const lost = status !== null && quiet > 8 && !document.hidden;
  find('.lh-bar').dataset.state = lost ? 'lost' : status === null ? 'starting' : status.last_error ? 'error' : status.paused ? 'paused' : 'well';
  if (status === null) return;
  const now = status.now + quiet;
  say('.run', `${status.run} · ${status.model} · ${status.device}`);
  say('.worker', lost ? `No answer from the server for ${Math.round(quiet)} s` : worker());
  const portion = lost ? undefined : [...String(status.worker).matchAll(/(\d+) of (\d+)/g)].pop();
  show('.portion', Boolean(portion));
  if (portion) find('.portion').value = portion[1] / portion[2];
  say('.version', `v${status.policy_version}`);
  say('.version-age', status.policy_version > 0 ? `updated ${age(now - status.version_created)}` : 'base, nothing learned yet');
  say('.ratings', status.ratings);
  say('.ready', status.ready);
  say('.pending', status.pending);
  show('.people', status.raters > 1);
  say('.raters', status.raters);
  show('.gpu', status.memory !== null);
  if (status.memory) say('.memory', `${(status.memory[0] / 1e9).toFixed(1)} of ${(status.memory[1] / 1e9).toFixed(0)} GB`);
  show('.disk', status.disk !== null);
  if (status.disk !== null) say('.free', `${(status.disk / 1e9).toFixed(1)} GB`);
  show('.fresh', status.freshness !== null);
  if (status.freshness !== null) say('.kept', `${percent(status.freshness)}%`);
  find('.fresh').title = 'How much of what the last update learned from was drawn by a version young enough for LOOP';
  show('.better', status.better !== null);
  if (status.better) {
    const older = status.better.version === status.policy_version ? '' : `v${status.better.version}: `;  // else it reads as the one in use's
    say('.share', `${older}${percent(status.better.share)}% wins`);
    say('.against', `against base, blind (${percent(status.better.low)} to ${percent(status.better.high)})`);
    find('.better').title = verdictWords(status.better);
  }
  say('.note', status.note || '');
  show('.note', Boolean(status.note));
  fail(status.last_error, status.may_teach ? status.remedies : []);
  say('.pause', status.paused ? 'Resume' : 'Pause');
  find('.pause').title = status.paused ? 'Go on learning' : 'Stop learning; rating goes on';
  find('.pause').disabled = !status.may_teach;
  show('.sign-in', status.sign_in);
}

function fail(sentence, remedies) {
  say('.error', sentence || '');
  show('.failure', Boolean(sentence));
  show('.again', remedies.includes('retry'));
  show('.go-on', remedies.includes('go on'));
}

function worker() {
  const text = String(status.worker || '');
  const plain = text ? text[0].toUpperCase() + text.slice(1) : 'Idle';
  return status.paused ? `Paused. ${plain}` : plain;
}

find('.again').addEventListener('click', () => trigger('mend', {}));
find('.go-on').addEventListener('click', () => trigger('mend', {}));
find('.pause').addEventListener('click', () => trigger('hold', { pause: !status.paused }));

watch('value', () => {
  const value = props.value || {};
  if (value.error) { fail(value.error, []); return; }
  if (typeof value.run !== 'string') return;
  status = value;
  received = performance.now();
  paint();
  window.dispatchEvent(new CustomEvent('loophil:status', { detail: status }));
});

const clock = setInterval(() => { if (element.isConnected) paint(); else clearInterval(clock); }, 1000);
