// Prints "ready" when an HTTP server has answered a request.
console.log('starting');
let modules = 0;
for (let i = 0; i < 8; i += 2) modules += require('part' + i);
const http = require('http'), crypto = require('crypto');
const server = http.createServer((req, res) => res.end(crypto.createHash('sha256').update(req.url).digest('hex')));
server.listen(0, '127.0.0.1', () => {
  http.get({host: '127.0.0.1', port: server.address().port, path: '/' + modules}, (res) => {
    let body = '';
    res.on('data', (d) => { body += d; });
    res.on('end', () => { console.log('ready: ' + body.slice(0, 12)); process.exit(0); });
  });
});
