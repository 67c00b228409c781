// Base and tuned side by side. Nothing is stored.
function draw() {
  show('.error', false);
  find('.lh-pair').classList.add('busy');
  trigger('draw', { prompt: find('.prompt').value.trim(), seed: find('.seed').valueAsNumber });
}

find('.lh-ask').addEventListener('submit', (event) => { event.preventDefault(); draw(); });
find('.dice').addEventListener('click', () => {
  find('.seed').value = Math.floor(Math.random() * 1e6);
  if (find('.lh-ask').reportValidity()) draw();
});

watch('value', () => {
  const value = props.value || {};
  find('.lh-pair').classList.remove('busy');
  say('.error', value.error || '');
  show('.error', Boolean(value.error));
  if (!value.base) return;
  find('.base').replaceChildren(picture(value.base, 'drawn by the base'));
  find('.tuned').replaceChildren(picture(value.tuned, 'drawn by the tuned model'));
  say('.tuned-name', `tuned, v${value.version}`);
});
