#include "server/http.h"

#include <httplib.h>

#include <thread>
#include <utility>

#include "backends/error.h"

namespace denoised {
namespace {

constexpr char kPlain[] = "text/plain; charset=utf-8";
constexpr char kPrometheus[] = "text/plain; version=0.0.4; charset=utf-8";

httplib::Server::HandlerResponse RefuseOtherMethods(const httplib::Request& request,
                                                    httplib::Response& response) {
  if (request.method == "GET" || request.method == "HEAD") {
    return httplib::Server::HandlerResponse::Unhandled;
  }
  response.status = 405;
  response.set_header("Allow", "GET, HEAD");
  response.set_content("only GET and HEAD\n", kPlain);
  return httplib::Server::HandlerResponse::Handled;
}

void AddPages(const HttpPages& pages, httplib::Server* server) {
  server->Get("/metrics", [pages](const httplib::Request&, httplib::Response& response) {
    response.set_content(pages.metrics(), kPrometheus);
  });
  server->Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("ok\n", kPlain);
  });
  server->Get("/readyz", [pages](const httplib::Request&, httplib::Response& response) {
    const std::string why_not = pages.not_ready();
    response.status = why_not.empty() ? 200 : 503;
    const std::string note = why_not.empty() && pages.ready_note ? pages.ready_note() : "";
    const std::string text = why_not.empty() ? "ready" + note : why_not;
    response.set_content(text + "\n", kPlain);
  });
}

// No request of ours has a body, and a scraper that dawdles must not hold a thread.
void SetLimits(httplib::Server* server) {
  server->new_task_queue = [] { return new httplib::ThreadPool(4); };
  server->set_payload_max_length(1024);
  server->set_read_timeout(5);
  server->set_write_timeout(5);
  server->set_keep_alive_timeout(5);
  // The default shares the port with any other process that asks for the same.
  server->set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
}

}  // namespace

struct HttpServer::State {
  httplib::Server server;
  std::thread thread;
  int port = 0;
};

HttpServer::HttpServer(const ListenAddress& address, HttpPages pages)
    : state_(std::make_unique<State>()) {
  httplib::Server& server = state_->server;
  SetLimits(&server);
  server.set_pre_routing_handler(RefuseOtherMethods);
  AddPages(pages, &server);
  state_->port = address.port;
  const bool bound = address.port == 0 ? (state_->port = server.bind_to_any_port(address.host)) > 0
                                       : server.bind_to_port(address.host, address.port);
  if (!bound) {
    throw Error(StatusCode::kUnavailable, "--http_listen: cannot listen on " + address.ToString(),
                "http_listen");
  }
  state_->thread = std::thread([this] { state_->server.listen_after_bind(); });
  // stop() before the accept loop runs would be lost.
  while (!server.is_running()) std::this_thread::yield();
}

HttpServer::~HttpServer() {
  state_->server.stop();
  state_->thread.join();
}

int HttpServer::port() const { return state_->port; }

}  // namespace denoised
