// What is to stand on the files, as it was filled in.
function label() {
  const [name, trigger_, licence] = ['name', 'trigger', 'licence'].map((field) => find(`.${field}`).value.trim());
  const covers = find('.covers').value.split('\n').map((prompt) => prompt.trim()).filter(Boolean);
  return { format: find('[name=loophil-format]:checked').value, name, trigger: trigger_, licence, covers };
}

// Makes the file of the version in use and fetches it: one click.
find('.lh-ask').addEventListener('submit', (event) => {
  event.preventDefault();
  find('.make').disabled = true;
  say('.make', 'Making the file');
  show('.error', false);
  trigger('make', label());
});

// Publishes them. The token leaves the page with this event, and the field is emptied at once.
find('.hub').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!find('.lh-ask').reportValidity()) return;
  const token = find('.token').value.trim();
  find('.token').value = '';
  find('.push').disabled = true;
  sayPushed('Asking');
  trigger('push', { ...label(), repository: find('.repository').value.trim(), private: find('.private').checked, token });
});

// What the push is doing, what stopped it, or where it led.
function sayPushed(text, address) {
  say('.pushed', address ? `${text}: ` : text);
  show('.pushed', true);
  if (!address) return;
  const link = make('a', '', address);
  [link.href, link.target, link.rel] = [address, '_blank', 'noopener'];
  find('.pushed').append(link);
}

find('.copy').addEventListener('click', () => navigator.clipboard?.writeText(find('.load').textContent));

watch('value', () => {
  const value = props.value || {};
  if (!value.stamp) return;
  if (value.of === 'push') {
    find('.push').disabled = !value.error && !value.address;
    sayPushed(value.error || (value.address ? value.doing : `${value.doing} ...`), value.address);
    return;
  }
  find('.make').disabled = false;
  say('.make', 'Make file');
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  show('.made', Boolean(value.url));
  if (!value.url) return;
  const link = find('.file');
  link.textContent = value.file;
  link.href = value.url;
  link.download = value.file;
  say('.size', `${(value.bytes / 1e6).toFixed(1)} MB`);
  const blind = value.blind ? `; ${verdictWords(value.blind)}` : '';
  say('.learned', `v${value.version}, learned from ${count(value.ratings, 'rated image')} in ${count(value.updates, 'update')}${blind}.`);
  say('.sha256', value.sha256);
  say('.load', value.load);
  link.click();
});
