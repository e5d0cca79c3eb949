// Prints "ready" when an HTTP server has answered a request.
print("starting");
var server = com.sun.net.httpserver.HttpServer.create(new java.net.InetSocketAddress("127.0.0.1", 0), 0);
server.createContext("/", new com.sun.net.httpserver.HttpHandler({
  handle: function (exchange) {
    var body = new java.lang.String("hello from " + exchange.getRequestURI()).getBytes();
    exchange.sendResponseHeaders(200, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }
}));
server.start();
var url = new java.net.URL("http://127.0.0.1:" + server.getAddress().getPort() + "/answer");
var reader = new java.io.BufferedReader(new java.io.InputStreamReader(url.openStream()));
print("ready: " + reader.readLine());
java.lang.System.out.flush();
server.stop(0);
java.lang.System.exit(0);
