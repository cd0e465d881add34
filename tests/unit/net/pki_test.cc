#include "shared/net/pki.h"

#include <sys/stat.h>

#include "cluster.h"
#include "shared/net/tls_context.h"

namespace tidemark::net {
namespace {

uint32_t mode_of(const std::string& path) {
  struct stat st{};
  EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
  return st.st_mode & 0777;
}

std::string content_of(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Pki, AuthorityCarriesTheClustersUuid) {
  TempDir dir;
  Uuid cluster = *Uuid::parse("0f3c6a52-8a0e-4c1c-9a35-6f9c37a9d2aa");
  auto made = pki::init_authority(dir / "pki", {.cluster = cluster});
  ASSERT_TRUE(made.is_ok()) << made.status().to_string();
  EXPECT_EQ(made->cluster, cluster);
  EXPECT_EQ(mode_of(dir / "pki/ca.key"), 0600u);
  auto info = pki::inspect(dir / "pki/ca.pem");
  ASSERT_TRUE(info.is_ok()) << info.status().to_string();
  EXPECT_TRUE(info->is_authority);
  EXPECT_EQ(info->cluster, cluster);
  EXPECT_EQ(info->subject, cluster.to_string());
  EXPECT_FALSE(info->identity.has_value());
}

TEST(Pki, NodesCertificateNamesClusterRoleAndAddresses) {
  Cluster cluster;
  auto files = pki::issue({.authority_directory = cluster.directory().path(),
                           .node = "replica-1",
                           .role = Role::kReplica,
                           .names = {"replica.example", "127.0.0.1", "::1"},
                           .out_directory = cluster.directory() / "out"});
  ASSERT_TRUE(files.is_ok()) << files.status().to_string();
  EXPECT_EQ(files->certificate, cluster.directory() / "out/replica-1.pem");
  EXPECT_EQ(mode_of(files->key), 0600u);
  auto info = pki::inspect(files->certificate);
  ASSERT_TRUE(info.is_ok()) << info.status().to_string();
  ASSERT_TRUE(info->identity.has_value());
  EXPECT_EQ(info->identity->role, Role::kReplica);
  EXPECT_EQ(info->identity->node, "replica-1");
  EXPECT_EQ(info->identity->cluster, cluster.uuid());
  EXPECT_EQ(info->issuer, cluster.uuid().to_string());
  EXPECT_THAT(info->names, ::testing::ElementsAre("replica-1", "replica.example", "127.0.0.1", "::1"));
  EXPECT_EQ(info->fingerprint.size(), 64u);
}

TEST(Pki, CertificatesAreDatedTwoDaysBack) {
  Cluster cluster;
  io::RealEnv env;
  auto info = pki::inspect(cluster.node("host1", Role::kHost).certificate);
  ASSERT_TRUE(info.is_ok());
  int64_t age_s = (env.wall().ns - info->not_before.ns) / 1'000'000'000;
  EXPECT_NEAR(static_cast<double>(age_s), 2 * 86400, 120);
  EXPECT_GT(info->not_after.ns, env.wall().ns);
}

TEST(Pki, ExplicitDatesAreKept) {
  Cluster cluster;
  WallTime from = *WallTime::parse("2020-01-01T00:00:00Z"), to = *WallTime::parse("2020-02-01T00:00:00Z");
  auto info = pki::inspect(cluster.node("old", Role::kHost, {.not_before = from, .not_after = to}).certificate);
  ASSERT_TRUE(info.is_ok());
  EXPECT_EQ(info->not_before, from);
  EXPECT_EQ(info->not_after, to);
  auto backwards = pki::issue({.authority_directory = cluster.directory().path(), .node = "never",
                               .validity = {.not_before = to, .not_after = from}});
  EXPECT_EQ(backwards.status().code(), Code::kInvalidArgument);
}

TEST(Pki, NoCertificateOutlivesItsAuthority) {
  Cluster cluster;
  auto info = pki::inspect(cluster.node("long", Role::kHost, {.days = 20000}).certificate);
  auto authority = pki::inspect(cluster.directory() / "ca.pem");
  ASSERT_TRUE(info.is_ok() && authority.is_ok());
  EXPECT_EQ(info->not_after, authority->not_after);
}

TEST(Pki, NothingIsOverwrittenWithoutForce) {
  Cluster cluster;
  cluster.node("host1", Role::kHost);
  std::string authority = content_of(cluster.directory() / "ca.pem");
  std::string before = content_of(cluster.directory() / "host1.key");
  EXPECT_EQ(pki::init_authority(cluster.directory().path(), {}).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(pki::issue({.authority_directory = cluster.directory().path(), .node = "host1"}).status().code(),
            Code::kAlreadyExists);
  EXPECT_EQ(content_of(cluster.directory() / "ca.pem"), authority);
  EXPECT_EQ(content_of(cluster.directory() / "host1.key"), before);
  cluster.node("host1", Role::kHost, {}, true);
  EXPECT_NE(content_of(cluster.directory() / "host1.key"), before);
  EXPECT_EQ(mode_of(cluster.directory() / "host1.key"), 0600u);
}

TEST(Pki, BadNamesAreRefused) {
  Cluster cluster;
  for (std::string name : {"", "a/b", "../x", "-x", ".x", "a b", "ca", "a,URI:tidemark"}) {
    auto result = pki::issue({.authority_directory = cluster.directory().path(), .node = name});
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument) << name;
  }
  auto smuggled =
      pki::issue({.authority_directory = cluster.directory().path(), .node = "x", .names = {"a,URI:tidemark://x"}});
  EXPECT_EQ(smuggled.status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(cluster.directory() / "x.key"));
}

TEST(Pki, WithoutAnAuthorityNothingIsIssued) {
  TempDir dir;
  auto result = pki::issue({.authority_directory = dir.path(), .node = "host1"});
  EXPECT_EQ(result.status().code(), Code::kNotFound);
  EXPECT_THAT(result.status().message(), ::testing::HasSubstr("ca.pem"));
}

TEST(Pki, AuthorityAndKeyMustBelongTogether) {
  Cluster cluster, other;
  std::filesystem::copy_file(other.directory() / "ca.key", cluster.directory() / "ca.key",
                             std::filesystem::copy_options::overwrite_existing);
  auto result = pki::issue({.authority_directory = cluster.directory().path(), .node = "host1"});
  EXPECT_EQ(result.status().code(), Code::kInvalidArgument);
}

TEST(Pki, InspectRefusesWhatIsNoCertificate) {
  TempDir dir;
  std::ofstream(dir / "x.pem") << "no certificate";
  EXPECT_EQ(pki::inspect(dir / "x.pem").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(pki::inspect(dir / "missing.pem").status().code(), Code::kNotFound);
}

// Opening one would wait for whoever writes into it.
TEST(Pki, AFifoIsNoCertificateNorKeyNorList) {
  Cluster cluster;
  const std::string fifo = cluster.directory() / "fifo", pki = cluster.directory().path();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  auto shown = pki::inspect(fifo);
  ASSERT_FALSE(shown.is_ok());
  EXPECT_NE(shown.status().message().find("is no regular file"), std::string::npos) << shown.status().to_string();
  EXPECT_FALSE(pki::revoke({.authority_directory = pki, .certificate = fifo}).is_ok());
  EXPECT_FALSE(pki::inspect(pki).is_ok()) << "a directory";

  auto issue = [&](const std::string& node) {
    return pki::issue({.authority_directory = pki, .node = node, .role = Role::kHost, .out_directory = pki}).status();
  };
  ASSERT_TRUE(issue("host1").is_ok());
  ASSERT_EQ(::mkfifo((pki + "/revoked.pem").c_str(), 0600), 0);
  EXPECT_FALSE(pki::revoke({.authority_directory = pki, .certificate = pki + "/host1.pem"}).is_ok());
  ASSERT_EQ(::unlink((pki + "/ca.key").c_str()), 0);
  ASSERT_EQ(::mkfifo((pki + "/ca.key").c_str(), 0600), 0);
  EXPECT_FALSE(issue("host2").is_ok());
}

TEST(TlsFilesCheck, KeyReadableByOthersIsRefused) {
  Cluster cluster;
  TlsFiles files = cluster.node("host1", Role::kHost);
  EXPECT_TRUE(TlsContext::load(files).is_ok());
  for (mode_t mode : {0640, 0604, 0644}) {
    ASSERT_EQ(::chmod(files.key.c_str(), mode), 0);
    auto loaded = TlsContext::load(files);
    EXPECT_EQ(loaded.status().code(), Code::kPermission);
    EXPECT_THAT(loaded.status().message(), ::testing::HasSubstr("chmod 600"));
  }
}

TEST(TlsFilesCheck, KeyOfAnotherNodeIsRefused) {
  Cluster cluster;
  TlsFiles files = cluster.node("host1", Role::kHost);
  files.key = cluster.node("host2", Role::kHost).key;
  auto loaded = TlsContext::load(files);
  EXPECT_EQ(loaded.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(loaded.status().message(), ::testing::HasSubstr("does not belong"));
}

TEST(Addresses, ParseAndPrint) {
  EXPECT_EQ(Address::parse("127.0.0.1:7400")->to_string(), "127.0.0.1:7400");
  EXPECT_EQ(Address::parse("[::1]:7400")->to_string(), "[::1]:7400");
  EXPECT_EQ(Address::parse("shared.example:1")->host, "shared.example");
  for (const char* bad : {"", ":1", "host", "host:", "host:x", "host:65536", "::1:7", "[::1]", "[::1]7", "host:-1"}) {
    EXPECT_EQ(Address::parse(bad).status().code(), Code::kInvalidArgument) << bad;
  }
}

TEST(Roles, NamesRoundTrip) {
  for (Role role : {Role::kHost, Role::kShared, Role::kReplica, Role::kWitness, Role::kOperator}) {
    EXPECT_EQ(parse_role(role_name(role)), role);
  }
  EXPECT_FALSE(parse_role("admin").has_value());
}

}  // namespace
}  // namespace tidemark::net
