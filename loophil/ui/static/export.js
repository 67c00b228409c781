// Makes the file of the version in use and fetches it: one click.
find('.make').addEventListener('click', () => {
  find('.make').disabled = true;
  say('.make', 'Making the file');
  show('.error', false);
  trigger('make', { format: find('input:checked').value });
});

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
  link.textContent = value.name;
  link.href = value.url;
  link.download = value.name;
  say('.size', `(${(value.bytes / 1e6).toFixed(1)} MB)`);
  link.click();
});
