#include "server/pages.h"

#include <memory>
#include <utility>

namespace denoised {
namespace {

constexpr char kPrometheus[] = "text/plain; version=0.0.4; charset=utf-8";

HttpResponse Text(int status, const std::string& text) {
  HttpResponse response;
  response.status = status;
  response.body = text + "\n";
  return response;
}

void AnswerReadiness(const PageSources& sources, HttpReply reply) {
  const std::string why_not = sources.not_ready();
  if (!why_not.empty()) return reply(Text(503, why_not));
  // What matters is whether a client gets an answer, not what this process believes of itself.
  sources.check_port(
      [reply = std::move(reply), note = sources.ready_note()](const std::string& wrong) {
        reply(wrong.empty() ? Text(200, "ready" + note) : Text(503, wrong));
      });
}

HttpResponse MethodRefusal() {
  HttpResponse response = Text(405, "only GET and HEAD");
  response.headers = "Allow: GET, HEAD\r\n";
  return response;
}

void AnswerPage(const PageSources& sources, const HttpRequest& request, HttpReply reply) {
  if (request.method != "GET" && request.method != "HEAD") return reply(MethodRefusal());
  if (request.content_length > 0) return reply(Text(413, "no request has a body"));
  if (request.path == "/healthz") return reply(Text(200, "ok"));
  if (request.path == "/readyz") return AnswerReadiness(sources, std::move(reply));
  if (request.path != "/metrics") return reply(Text(404, "no such page"));
  HttpResponse page;
  page.content_type = kPrometheus;
  page.pieces = sources.metrics();
  reply(std::move(page));
}

}  // namespace

HttpHandler MakePages(PageSources sources) {
  return [sources = std::move(sources)](const HttpRequest& request, HttpReply reply) {
    AnswerPage(sources, request, std::move(reply));
  };
}

}  // namespace denoised
