#include "shared/daemon/routes.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace tidemark::daemon {
namespace {

net::HttpResponse ask(Routes& routes, std::string method, std::string target, std::string_view body = "") {
  net::HttpRequest request;
  request.method = std::move(method);
  request.target = std::move(target);
  request.body.assign(as_bytes(body).begin(), as_bytes(body).end());
  net::HttpResponse out;
  out.status = 0;
  routes.dispatch(std::move(request), [&](net::HttpResponse response) { out = std::move(response); });
  return out;
}

TEST(Routes, GivesPathParametersAndQueryDecoded) {
  Routes routes;
  Request seen;
  routes.get("/v1/points/{point}/images/{uuid}", [&](const Request& r) -> Result<std::string> {
    seen.parameters = r.parameters;
    seen.query = r.query;
    return std::string("{}");
  });
  EXPECT_EQ(ask(routes, "GET", "/v1/points/a%20b%2Fc/images/u+1?at=2026-11-21T10%3A00%3A05Z&name=x+y&flag").status,
            200);
  EXPECT_EQ(seen.parameter("point"), "a b/c");
  EXPECT_EQ(seen.parameter("uuid"), "u+1");
  EXPECT_EQ(seen.query["at"], "2026-11-21T10:00:05Z");
  EXPECT_EQ(seen.query["name"], "x y");
  EXPECT_EQ(seen.query.count("flag"), 1u);
}

TEST(Routes, UnknownPathIs404AndOtherMethod405) {
  Routes routes;
  routes.post("/v1/mark", [](const Request&) -> Result<std::string> { return std::string("{}"); });
  EXPECT_EQ(ask(routes, "POST", "/v1/mark").status, 200);
  EXPECT_EQ(ask(routes, "GET", "/v1/mark").status, 405);
  EXPECT_EQ(ask(routes, "GET", "/v1").status, 404);
  EXPECT_EQ(ask(routes, "GET", "/v1/mark/x").status, 404);
  EXPECT_EQ(ask(routes, "GET", "").status, 404);
}

TEST(Routes, AHandlerMayAnswerLater) {
  Routes routes;
  Reply held;
  routes.get("/slow", [&](Request, Reply reply) { held = std::move(reply); });
  net::HttpRequest request;
  request.method = "GET";
  request.target = "/slow";
  int status = 0;
  routes.dispatch(std::move(request), [&](net::HttpResponse r) { status = r.status; });
  EXPECT_EQ(status, 0);
  held(net::HttpResponse::json(200, "{}"));
  EXPECT_EQ(status, 200);
}

TEST(Routes, ErrorsHaveTheDocumentedShape) {
  Routes routes;
  routes.get("/x", [](const Request&) -> Result<std::string> { return Status(Code::kNotFound, "no image \xff here"); });
  auto r = ask(routes, "GET", "/x");
  EXPECT_EQ(r.status, 404);
  auto json = nlohmann::json::parse(as_text(r.body));
  EXPECT_EQ(json["error"], "not_found");
  EXPECT_NE(json["message"].get<std::string>().find("no image"), std::string::npos);
}

// The path goes into the message; whoever reaches the metrics port chooses it.
TEST(Routes, APathThatIsNoUtf8IsAnsweredToo) {
  Routes routes;
  routes.post("/v1/mark", [](const Request&) -> Result<std::string> { return std::string("{}"); });
  EXPECT_EQ(ask(routes, "GET", "/\xff\xfe").status, 404);
  EXPECT_EQ(ask(routes, "\xff", "/v1/mark").status, 405);
}

TEST(Percent, EncodingComesBack) {
  std::string text = "a/b c%\xc3\xa4+:";
  EXPECT_EQ(percent_decode(percent_encode(text)), text);
  EXPECT_EQ(percent_encode("a/b c"), "a%2Fb%20c");
  EXPECT_EQ(percent_decode("%zz%4"), "%zz%4");
}

}  // namespace
}  // namespace tidemark::daemon
