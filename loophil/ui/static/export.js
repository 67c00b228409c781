// Makes the file of the version in use and fetches it: one click.
find('.lh-ask').addEventListener('submit', (event) => {
  event.preventDefault();
  find('.make').disabled = true;
  say('.make', 'Making the file');
  show('.error', false);
  const [name, trigger_, licence] = ['name', 'trigger', 'licence'].map((field) => find(`.${field}`).value.trim());
  const covers = find('.covers').value.split('\n').map((prompt) => prompt.trim()).filter(Boolean);
  trigger('make', { format: find('input:checked').value, name, trigger: trigger_, licence, covers });
});

find('.copy').addEventListener('click', () => navigator.clipboard?.writeText(find('.load').textContent));

watch('value', () => {
  const value = props.value || {};
  if (!value.stamp) return;
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
