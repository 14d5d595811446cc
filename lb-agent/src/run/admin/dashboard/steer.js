// Changes: what is asked for, the token that allows it, and what becomes of it.

const KEPT = 'sluice-token';
const TEXTS = {
  drain: ['Drain', 'It gets no new clients. Those that it has stay until the deadline, and are then closed at the pace.'],
  maintenance: ['Maintenance', 'It gets nobody any more. Those that it has are closed at the pace, from now on.'],
  undrain: ['Undrain', 'It gets clients again.'],
};

const id = (name) => document.getElementById(name);

async function post(path, body, token) {
  const headers = { 'Content-Type': 'application/json' };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: 'POST', headers, body: JSON.stringify(body), credentials: 'omit' });
  if (answer.ok) return;
  const problem = await answer.json().catch(() => ({ error: `the edge answers ${answer.status}` }));
  const error = new Error(problem.remedy ? `${problem.error}: ${problem.remedy}` : problem.error);
  error.status = answer.status;
  throw error;
}

export class Steer {
  // `changed` is called whenever more or less is allowed than before.
  constructor(changed) {
    this.changed = changed;
    // `open`, `token` or `none`, as the edge says.
    this.changes = 'none';
    this.asked = null;
    this.prepare('token', (input) => this.tryToken(input));
    this.prepare('change', () => this.change());
    id('unlock').addEventListener('click', () => (this.token() ? this.lock() : this.unlock()));
  }

  // A form in a dialog: what goes wrong is said in it.
  prepare(name, submit) {
    const [dialog, form, error] = [id(`${name}-dialog`), id(`${name}-form`), id(`${name}-error`)];
    form.querySelector('.cancel').addEventListener('click', () => dialog.close());
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      const button = form.querySelector('[type=submit]');
      error.textContent = '';
      button.disabled = true;
      try {
        await submit();
        dialog.close();
      } catch (problem) {
        error.textContent = problem.message;
      } finally {
        button.disabled = false;
      }
    });
    dialog.addEventListener('close', () => {
      form.reset();
      error.textContent = '';
    });
  }

  // In this tab, and in no cookie: no other page can have the browser send it.
  token() {
    return sessionStorage.getItem(KEPT);
  }

  setChanges(changes) {
    this.changes = changes;
    this.tell();
  }

  isAllowed() {
    return this.changes === 'open' || (this.changes === 'token' && this.token() !== null);
  }

  lock() {
    sessionStorage.removeItem(KEPT);
    this.tell();
  }

  unlock() {
    id('token-dialog').showModal();
  }

  tell() {
    const button = id('unlock');
    button.hidden = this.changes !== 'token';
    button.textContent = this.token() ? 'Lock changes' : 'Unlock changes';
    this.changed();
  }

  async tryToken() {
    const token = id('token').value.trim();
    await post('/v1/token', {}, token);
    sessionStorage.setItem(KEPT, token);
    this.tell();
  }

  ask(service, backend, action) {
    const [title, text] = TEXTS[action];
    this.asked = { service, backend, action };
    id('change-title').textContent = `${title} ${service} / ${backend}`;
    id('change-text').textContent = text;
    id('change-do').textContent = title;
    id('change-pace').hidden = action === 'undrain';
    id('change-deadline').hidden = action !== 'drain';
    id('force').parentElement.hidden = action === 'undrain';
    id('change-dialog').showModal();
  }

  async change() {
    const { service, backend, action } = this.asked;
    const [deadline, rate] = [id('deadline').value.trim(), id('rate').value.trim()];
    const body = {};
    if (action !== 'undrain') {
      if (action === 'drain' && deadline) body.deadline = deadline;
      if (rate) body.rate = Number(rate);
      if (id('force').checked) body.force = true;
    }
    const [of, at] = [service, backend].map(encodeURIComponent);
    try {
      await post(`/v1/services/${of}/backends/${at}/${action}`, body, this.token());
    } catch (error) {
      // It was replaced since.
      if (error.status === 401) this.lock();
      throw error;
    }
  }
}
