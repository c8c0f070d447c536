// Request heads, honest and hostile.
#include "server/http_parser.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace denoised {
namespace {

using State = HttpHead::State;

HttpRequest Parsed(const std::string& bytes) {
  const HttpHead head = ParseHttpHead(bytes);
  EXPECT_EQ(head.state, State::kComplete) << bytes << " " << head.status << " " << head.why;
  return head.request;
}

int StatusOf(const std::string& bytes) {
  const HttpHead head = ParseHttpHead(bytes);
  EXPECT_EQ(head.state, State::kRefused) << bytes;
  EXPECT_NE(head.why, "");
  return head.status;
}

TEST(HttpParser, ARequestIsTakenApart) {
  const HttpRequest request =
      Parsed("GET /metrics?name[]=a%20b HTTP/1.1\r\nHost: x:1\r\nAccept: */*\r\n\r\n");
  EXPECT_EQ(request.method, "GET");
  EXPECT_EQ(request.path, "/metrics");
  EXPECT_EQ(request.query, "name[]=a%20b");
  EXPECT_TRUE(request.keep_alive);
  EXPECT_TRUE(request.takes_chunks);
  EXPECT_EQ(request.content_length, 0u);
}

TEST(HttpParser, BareLineFeedsAStrayLineBeforeAndTheProxyFormAreUnderstood) {
  EXPECT_EQ(Parsed("GET / HTTP/1.1\nHost: x\n\n").path, "/");
  EXPECT_EQ(Parsed("\r\nGET /a HTTP/1.1\r\n\r\n").path, "/a");
  EXPECT_EQ(Parsed("GET http://host:80/b?c HTTP/1.1\r\n\r\n").path, "/b");
  EXPECT_EQ(Parsed("GET HTTP://host HTTP/1.1\r\n\r\n").path, "/");
}

TEST(HttpParser, TheConnectionIsKeptAsVersionAndHeaderSay) {
  EXPECT_FALSE(Parsed("GET / HTTP/1.0\r\n\r\n").keep_alive);
  EXPECT_FALSE(Parsed("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").takes_chunks);
  EXPECT_TRUE(Parsed("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
  EXPECT_FALSE(Parsed("GET / HTTP/1.1\r\nCONNECTION: te , Close\r\n\r\n").keep_alive);
  EXPECT_FALSE(
      Parsed("GET / HTTP/1.1\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n").keep_alive);
}

TEST(HttpParser, WhatFollowsTheHeadIsLeftAlone) {
  const std::string first = "GET /a HTTP/1.1\r\n\r\n";
  const HttpHead head = ParseHttpHead(first + "GET /b HTTP/1.1\r\n\r\n");
  EXPECT_EQ(head.used, first.size());
  EXPECT_EQ(head.request.path, "/a");
}

TEST(HttpParser, EveryCutOfAnHonestRequestWaitsForTheRest) {
  const std::string whole =
      "HEAD /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nUser-Agent: x y\r\n\r\n";
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(ParseHttpHead(whole.substr(0, size)).state, State::kIncomplete) << size;
  }
  EXPECT_EQ(ParseHttpHead(whole).used, whole.size());
}

TEST(HttpParser, WhatIsNoRequestIsRefusedByItsKind) {
  for (const char* line :
       {"GET", "GET /", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "G\tT / HTTP/1.1", "GET x HTTP/1.1",
        "GET * HTTP/1.1", "GET  HTTP/1.1", "GET /a b HTTP/1.1", "GET /\x01 HTTP/1.1",
        "GET /\xc3\xa9 HTTP/1.1", "GET / http/1.1", "GET ftp://x/ HTTP/1.1", "\x16\x03\x01\x02"}) {
    EXPECT_EQ(StatusOf(std::string(line) + "\r\n\r\n"), 400) << line;
  }
  EXPECT_EQ(StatusOf("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
  EXPECT_EQ(StatusOf("GET / HTTP/3\r\n\r\n"), 505);
}

TEST(HttpParser, HeadersThatCouldMeanTwoThingsAreRefused) {
  for (const char* header :
       {"no colon", ": no name", "bad name: x", "a: b\r\n folded", "a: \x01", "a\x80: b",
        "Content-Length: -1", "Content-Length: 1 1", "Content-Length: 0x1", "Content-Length:",
        "Content-Length: 18446744073709551616", "Content-Length: 1\r\nContent-Length: 2"}) {
    EXPECT_EQ(StatusOf("GET / HTTP/1.1\r\n" + std::string(header) + "\r\n\r\n"), 400) << header;
  }
  EXPECT_EQ(StatusOf(std::string("GET / HTTP/1.1\r\na: b\0c\r\n\r\n", 26)), 400);
  EXPECT_EQ(StatusOf("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
  EXPECT_EQ(
      Parsed("POST / HTTP/1.1\r\nContent-Length: 7\r\ncontent-length: 7\r\n\r\n").content_length,
      7u);
}

TEST(HttpParser, HeadsWithoutEndAreCutOff) {
  EXPECT_EQ(StatusOf("GET /" + std::string(kMaxHttpHead, 'a')), 431);
  EXPECT_EQ(StatusOf("GET / HTTP/1.1\r\na: " + std::string(kMaxHttpHead, 'a')), 431);
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 101; ++i) many += "a: b\r\n";
  EXPECT_EQ(StatusOf(many + "\r\n"), 431);
}

// Pieces of requests, glued and broken at random: the parser neither crashes nor contradicts
// itself.
TEST(HttpParserFuzz, RandomBytesBreakNothing) {
  std::mt19937 random(1);  // the same bytes in every run
  const std::vector<std::string> pieces = {"GET ",
                                           "HEAD ",
                                           "/",
                                           "/metrics",
                                           " HTTP/1.1",
                                           " HTTP/1.0",
                                           "\r\n",
                                           "\n",
                                           "\r",
                                           ": ",
                                           "a",
                                           "Host: x",
                                           "Connection: ",
                                           "close",
                                           "keep-alive",
                                           ",",
                                           "Content-Length: ",
                                           "0",
                                           "99",
                                           "Transfer-Encoding: x",
                                           " ",
                                           "\t",
                                           std::string(1, '\0'),
                                           "\x7f",
                                           "\xff",
                                           "?",
                                           "http://"};
  const auto below = [&](size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(random);
  };
  int complete = 0;
  for (int round = 0; round < 200000; ++round) {
    std::string bytes = round % 2 == 0 ? "" : "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
    for (size_t i = below(12); i > 0; --i)
      bytes.insert(below(bytes.size() + 1), pieces[below(pieces.size())]);
    if (!bytes.empty() && below(3) == 0) bytes[below(bytes.size())] = static_cast<char>(below(256));
    const HttpHead head = ParseHttpHead(bytes);
    if (head.state == State::kComplete) {
      ++complete;
      ASSERT_GT(head.used, 0u);
      ASSERT_LE(head.used, bytes.size());
      ASSERT_EQ(head.request.path.front(), '/');
      ASSERT_EQ(bytes[head.used - 1], '\n');
      // What it took is a request by itself, and no shorter piece of it is.
      ASSERT_EQ(ParseHttpHead(bytes.substr(0, head.used)).used, head.used);
      ASSERT_NE(ParseHttpHead(bytes.substr(0, head.used - 1)).state, State::kComplete);
    } else if (head.state == State::kRefused) {
      ASSERT_GE(head.status, 400);
      // Refused is for good: no further byte makes it a request.
      ASSERT_EQ(ParseHttpHead(bytes + "\r\n\r\n").state, State::kRefused);
    }
  }
  EXPECT_GT(complete, 5000) << "the pieces do make requests";
}

}  // namespace
}  // namespace denoised
