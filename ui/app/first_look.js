// Asks what is new while Gradio builds the page, which takes most of a second; polling.js draws it.
window.awFirst = (async () => {
  const pulse = window.gradio_config.components.find(({ props }) => props.elem_id === 'pulse');
  const answer = await fetch(new URL('gradio_api/component_server', document.baseURI), {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ data: { first: true }, component_id: pulse.id, fn_name: 'news', session_hash: 'first' }),
  });
  return answer.json();
})().catch(() => null);
