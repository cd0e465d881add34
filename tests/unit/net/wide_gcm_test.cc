#include "shared/net/wide_gcm.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/provider.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "shared/base/bytes.h"

namespace tidemark::net {
namespace {

constexpr char kOpenssl[] = "provider=default";

// Where the processor has no VAES with AVX-512, what TLS takes is OpenSSL's own: all that is here holds for it, too.
bool is_own() { return tls_properties()[0] != 0; }

using CipherPtr = std::unique_ptr<EVP_CIPHER, decltype(&EVP_CIPHER_free)>;
using ContextPtr = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

CipherPtr fetch(const char* properties) {
  return {EVP_CIPHER_fetch(nullptr, "AES-128-GCM", properties), EVP_CIPHER_free};
}

struct Message {
  std::array<uint8_t, 16> key, tag;
  std::array<uint8_t, 12> iv;
  Bytes aad, text;
};

// One direction as TLS drives it: the key once, then a vector, additional data and text for each message.
class Direction {
 public:
  Direction(const char* properties, bool encrypts)
      : encrypts_(encrypts), cipher_(fetch(properties)), context_(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free) {
    EXPECT_NE(cipher_, nullptr) << properties;
    EXPECT_EQ(EVP_CipherInit_ex(context_.get(), cipher_.get(), nullptr, nullptr, nullptr, encrypts ? 1 : 0), 1);
    EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_IVLEN, 12, nullptr), 1);
  }
  void set_key(const Message& m) {
    ASSERT_EQ(EVP_CipherInit_ex(context_.get(), nullptr, nullptr, m.key.data(), nullptr, -1), 1);
  }
  // The text is taken in pieces of `piece` bytes; in place, as TLS does, or into a buffer of its own.
  std::optional<Bytes> run(Message& m, size_t piece, bool in_place) {
    EVP_CIPHER_CTX* c = context_.get();
    Bytes in = m.text, out(m.text.size());
    uint8_t* to = in_place ? in.data() : out.data();
    int n = 0;
    if (EVP_CipherInit_ex(c, nullptr, nullptr, nullptr, m.iv.data(), encrypts_ ? 1 : 0) != 1) return std::nullopt;
    if (!encrypts_ && EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, m.tag.data()) != 1) return std::nullopt;
    if (!m.aad.empty() && EVP_CipherUpdate(c, nullptr, &n, m.aad.data(), static_cast<int>(m.aad.size())) != 1)
      return std::nullopt;
    for (size_t at = 0; at < in.size(); at += piece) {
      const int size = static_cast<int>(std::min(piece, in.size() - at));
      if (EVP_CipherUpdate(c, to + at, &n, in.data() + at, size) != 1 || n != size) return std::nullopt;
    }
    uint8_t rest[16];
    if (EVP_CipherFinal_ex(c, rest, &n) != 1 || n != 0) return std::nullopt;
    if (encrypts_ && EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, m.tag.data()) != 1) return std::nullopt;
    return in_place ? in : out;
  }
  EVP_CIPHER_CTX* native() { return context_.get(); }

 private:
  const bool encrypts_;
  CipherPtr cipher_;
  ContextPtr context_;
};

class WideGcmTest : public testing::Test {
 protected:
  Message message(size_t size, size_t aad) {
    Message m{};
    auto fill = [&](auto& bytes) { std::generate(bytes.begin(), bytes.end(), [&] { return uint8_t(random_()); }); };
    m.aad.resize(aad);
    m.text.resize(size);
    fill(m.key), fill(m.iv), fill(m.aad), fill(m.text);
    return m;
  }
  std::mt19937 random_{20261123};
  std::array<uint8_t, 16> key_{};
};

// McGrew and Viega, The Galois/Counter Mode of Operation, test case 4.
TEST_F(WideGcmTest, HasTheResultsOfThePublishedTestCase) {
  auto bytes = [](const std::string& hex) {
    Bytes out;
    for (size_t i = 0; i < hex.size(); i += 2) {
      out.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return out;
  };
  Message m{};
  std::ranges::copy(bytes("feffe9928665731c6d6a8f9467308308"), m.key.begin());
  std::ranges::copy(bytes("cafebabefacedbaddecaf888"), m.iv.begin());
  m.aad = bytes("feedfacedeadbeeffeedfacedeadbeefabaddad2");
  m.text = bytes("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                 "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
  Direction encrypt(tls_properties(), true);
  encrypt.set_key(m);
  EXPECT_EQ(encrypt.run(m, 60, false), bytes("42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
                                             "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091"));
  EXPECT_EQ(Bytes(m.tag.begin(), m.tag.end()), bytes("5bc94fbc3221a5db94fae95ae7121a47"));
}

TEST_F(WideGcmTest, AgreesWithOpensslOnEverySizeBothWays) {
  Direction encrypt(tls_properties(), true), decrypt(tls_properties(), false);
  Direction their_encrypt(kOpenssl, true), their_decrypt(kOpenssl, false);
  for (int i = 0; i < 3000; ++i) {
    const size_t size = i < 1200 ? i : random_() % 16641;
    const size_t piece = i % 3 == 0 ? 1 + random_() % 300 : SIZE_MAX / 2;
    Message m = message(size, i % 4 == 0 ? random_() % 65 : 5);
    const Bytes plain = m.text;
    if (i % 7 == 0) {
      for (Direction* d : {&encrypt, &decrypt, &their_encrypt, &their_decrypt}) d->set_key(m);
      key_ = m.key;
    }
    m.key = key_;
    Message theirs = m;
    auto own = encrypt.run(m, piece, i % 2 == 0);
    auto other = their_encrypt.run(theirs, SIZE_MAX / 2, false);
    ASSERT_TRUE(own && other);
    ASSERT_EQ(*own, *other) << size;
    ASSERT_EQ(m.tag, theirs.tag) << size;
    m.text = theirs.text = *own;
    ASSERT_EQ(decrypt.run(m, piece, i % 2 == 1), plain) << size;
    ASSERT_EQ(their_decrypt.run(theirs, SIZE_MAX / 2, false), plain) << size;
  }
}

TEST_F(WideGcmTest, RefusesWhatWasChangedOnItsWay) {
  Direction encrypt(tls_properties(), true), decrypt(tls_properties(), false);
  for (size_t size : {0u, 1u, 64u, 4196u, 16384u}) {
    Message sent = message(size, 5);
    encrypt.set_key(sent);
    decrypt.set_key(sent);
    const Bytes plain = sent.text;
    sent.text = *encrypt.run(sent, SIZE_MAX / 2, false);
    auto refused = [&](auto change) {
      Message m = sent;
      change(m);
      return !decrypt.run(m, SIZE_MAX / 2, false);
    };
    EXPECT_TRUE(refused([](Message& m) { m.tag[15] ^= 1; }));
    EXPECT_TRUE(refused([](Message& m) { m.iv[0] ^= 1; }));
    EXPECT_TRUE(refused([](Message& m) { m.aad[4] ^= 0x80; }));
    EXPECT_TRUE(size == 0 || refused([](Message& m) { m.text.back() ^= 4; }));
    EXPECT_TRUE(size == 0 || refused([](Message& m) { m.text.pop_back(); }));
    EXPECT_EQ(decrypt.run(sent, SIZE_MAX / 2, false), plain) << "unchanged, after all those";
  }
}

TEST_F(WideGcmTest, RefusesToBeUsedWronglyInsteadOfEncryptingBadly) {
  Direction encrypt(tls_properties(), true);
  Message m = message(32, 5);
  EXPECT_FALSE(encrypt.run(m, 32, false)) << "no key";
  encrypt.set_key(m);
  ASSERT_TRUE(encrypt.run(m, 32, false));
  int n = 0;
  Bytes out(32);
  EXPECT_EQ(EVP_CipherUpdate(encrypt.native(), out.data(), &n, m.text.data(), 32), 0) << "the same vector again";
  if (is_own()) {   // which takes what TLS needs, and no more
    EXPECT_EQ(EVP_CIPHER_CTX_ctrl(encrypt.native(), EVP_CTRL_AEAD_SET_IVLEN, 16, nullptr), 0);
    m.aad.resize(65);
    EXPECT_FALSE(encrypt.run(m, 32, false)) << "more additional data than it takes";
  }
  Direction decrypt(tls_properties(), false);
  decrypt.set_key(m);
  ASSERT_EQ(EVP_CipherInit_ex(decrypt.native(), nullptr, nullptr, nullptr, m.iv.data(), 0), 1);
  ASSERT_EQ(EVP_CipherUpdate(decrypt.native(), out.data(), &n, m.text.data(), 32), 1);
  EXPECT_EQ(EVP_CipherFinal_ex(decrypt.native(), out.data(), &n), 0) << "no tag was given";
}

TEST(WideGcm, IsThereWhereTheProcessorHasTheVectorsForIt) {
  // There is no processor with these and without VAES, of which not every compiler knows the name.
  const bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("vpclmulqdq");
  EXPECT_STREQ(tls_properties(), wide ? "?provider=tidemark" : "");
}

TEST_F(WideGcmTest, IsPreferredWhereItIsAskedFor) {
  CipherPtr taken = fetch(tls_properties());
  ASSERT_NE(taken, nullptr);
  EXPECT_STREQ(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(taken.get())), is_own() ? "tidemark" : "default");
  CipherPtr plain = fetch("");
  ASSERT_NE(plain, nullptr);
  EXPECT_STREQ(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(plain.get())), "default") << "for curl";
}

}  // namespace
}  // namespace tidemark::net
