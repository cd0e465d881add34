#include "shared/net/wide_gcm.h"

#include <intel-ipsec-mb.h>
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>

#include "shared/base/log.h"

// What libcrypto expects of a cipher is in provider-cipher(7). A failure is a zero; TLS makes its alert of that.
namespace tidemark::net {
namespace {

const log::Logger kLog("tls");
constexpr size_t kKeyBytes = 16, kIvBytes = 12, kTagBytes = 16;
constexpr size_t kAadBytesMax = 64;   // TLS has 5

// The library goes by what the processor says alone; this by what the kernel lets programs use, too. (Whether there is
// VAES the library says: compilers from before know no name for it.)
bool has_wide_vectors() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("vpclmulqdq");
}

// Null where there are none. Never written after it was made: the functions that it holds take all their state as
// arguments.
IMB_MGR* functions() {
  static IMB_MGR* const made = []() -> IMB_MGR* {
    IMB_MGR* m = has_wide_vectors() ? alloc_mb_mgr(0) : nullptr;
    if (m == nullptr) return nullptr;
    init_mb_mgr_auto(m, nullptr);
    const bool well = imb_get_errno(m) == 0;   // its self-test
    if (well && m->used_arch == IMB_ARCH_AVX512 && (m->features & IMB_FEATURE_VAES) != 0) return m;
    free_mb_mgr(m);
    return nullptr;
  }();
  return made;
}

// One direction under one key. A message is: initialized, additional data, text in pieces, final.
struct Cipher {
  alignas(64) gcm_key_data key;
  alignas(64) gcm_context_data message;
  std::array<uint8_t, kIvBytes> iv;
  std::array<uint8_t, kTagBytes> tag;
  std::array<uint8_t, kAadBytesMax> aad;
  size_t aad_size = 0;
  bool encrypts = false, has_key = false, has_iv = false, has_tag = false;
  bool begun = false;   // the text has, or the message is over: no more additional data

  void begin() {
    if (begun) return;
    IMB_AES128_GCM_INIT(functions(), &key, &message, iv.data(), aad.data(), aad_size);
    begun = true;
  }
};

Cipher& cipher_of(void* context) { return *static_cast<Cipher*>(context); }

void* make(void*) { return new (std::nothrow) Cipher(); }
void* copy(void* context) { return new (std::nothrow) Cipher(cipher_of(context)); }
void destroy(void* context) {
  if (context == nullptr) return;
  OPENSSL_cleanse(context, sizeof(Cipher));
  delete static_cast<Cipher*>(context);
}

int set_params(void* context, const OSSL_PARAM params[]) {
  Cipher& c = cipher_of(context);
  size_t size = 0;
  if (const OSSL_PARAM* p = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_IVLEN)) {
    if (OSSL_PARAM_get_size_t(p, &size) != 1 || size != kIvBytes) return 0;
  }
  if (const OSSL_PARAM* p = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_TAG)) {
    void* to = c.tag.data();
    if (c.encrypts || OSSL_PARAM_get_octet_string(p, &to, c.tag.size(), &size) != 1 || size != kTagBytes) return 0;
    c.has_tag = true;
  }
  return 1;
}

int init(void* context, bool encrypts, const uint8_t* key, size_t key_size, const uint8_t* iv, size_t iv_size,
         const OSSL_PARAM params[]) {
  Cipher& c = cipher_of(context);
  c.encrypts = encrypts;
  c.has_tag = c.begun = false;
  c.aad_size = 0;
  if (key != nullptr) {
    if (key_size != kKeyBytes) return 0;
    IMB_AES128_GCM_PRE(functions(), key, &c.key);
    c.has_key = true;
  }
  // No key is used twice with one vector: each message asks for its own.
  c.has_iv = iv != nullptr;
  if (iv != nullptr) {
    if (iv_size != kIvBytes) return 0;
    std::copy_n(iv, kIvBytes, c.iv.begin());
  }
  return params == nullptr ? 1 : set_params(context, params);
}

int init_encrypt(void* context, const uint8_t* key, size_t key_size, const uint8_t* iv, size_t iv_size,
                 const OSSL_PARAM params[]) {
  return init(context, true, key, key_size, iv, iv_size, params);
}

int init_decrypt(void* context, const uint8_t* key, size_t key_size, const uint8_t* iv, size_t iv_size,
                 const OSSL_PARAM params[]) {
  return init(context, false, key, key_size, iv, iv_size, params);
}

int update(void* context, uint8_t* out, size_t* out_size, size_t out_max, const uint8_t* in, size_t size) {
  Cipher& c = cipher_of(context);
  if (!c.has_key || !c.has_iv) return 0;
  *out_size = size;
  if (out == nullptr) {   // additional data
    if (c.begun || size > kAadBytesMax - c.aad_size) return 0;
    std::copy_n(in, size, c.aad.begin() + c.aad_size);
    c.aad_size += size;
    return 1;
  }
  if (size > out_max) return 0;
  c.begin();
  if (c.encrypts) IMB_AES128_GCM_ENC_UPDATE(functions(), &c.key, &c.message, out, in, size);
  else IMB_AES128_GCM_DEC_UPDATE(functions(), &c.key, &c.message, out, in, size);
  return 1;
}

int finish(void* context, uint8_t*, size_t* out_size, size_t) {
  Cipher& c = cipher_of(context);
  *out_size = 0;
  if (!c.has_key || !c.has_iv) return 0;
  c.begin();
  c.has_iv = false;
  if (c.encrypts) {
    IMB_AES128_GCM_ENC_FINALIZE(functions(), &c.key, &c.message, c.tag.data(), kTagBytes);
    c.has_tag = true;
    return 1;
  }
  std::array<uint8_t, kTagBytes> found;
  IMB_AES128_GCM_DEC_FINALIZE(functions(), &c.key, &c.message, found.data(), kTagBytes);
  const bool genuine = c.has_tag && CRYPTO_memcmp(found.data(), c.tag.data(), kTagBytes) == 0;
  c.has_tag = false;
  return genuine ? 1 : 0;
}

template <class Set, class... Value>
bool answer(OSSL_PARAM params[], const char* name, Set set, Value... value) {
  OSSL_PARAM* p = OSSL_PARAM_locate(params, name);
  return p == nullptr || set(p, value...) == 1;
}

int get_params(OSSL_PARAM params[]) {
  const bool answered = answer(params, OSSL_CIPHER_PARAM_MODE, OSSL_PARAM_set_uint, unsigned{EVP_CIPH_GCM_MODE}) &&
                        answer(params, OSSL_CIPHER_PARAM_AEAD, OSSL_PARAM_set_int, 1) &&
                        answer(params, OSSL_CIPHER_PARAM_CUSTOM_IV, OSSL_PARAM_set_int, 1) &&
                        answer(params, OSSL_CIPHER_PARAM_KEYLEN, OSSL_PARAM_set_size_t, kKeyBytes) &&
                        answer(params, OSSL_CIPHER_PARAM_IVLEN, OSSL_PARAM_set_size_t, kIvBytes) &&
                        answer(params, OSSL_CIPHER_PARAM_BLOCK_SIZE, OSSL_PARAM_set_size_t, size_t{1});
  return answered ? 1 : 0;
}

int get_context_params(void* context, OSSL_PARAM params[]) {
  Cipher& c = cipher_of(context);
  if (OSSL_PARAM* p = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD_TAG)) {
    const bool asked_rightly = c.encrypts && c.has_tag && p->data_size == kTagBytes;
    if (!asked_rightly || OSSL_PARAM_set_octet_string(p, c.tag.data(), kTagBytes) != 1) return 0;
  }
  const bool answered = answer(params, OSSL_CIPHER_PARAM_KEYLEN, OSSL_PARAM_set_size_t, kKeyBytes) &&
                        answer(params, OSSL_CIPHER_PARAM_IVLEN, OSSL_PARAM_set_size_t, kIvBytes) &&
                        answer(params, OSSL_CIPHER_PARAM_AEAD_TAGLEN, OSSL_PARAM_set_size_t, kTagBytes);
  return answered ? 1 : 0;
}

const OSSL_PARAM* names_of_params(void*) {
  static const OSSL_PARAM names[] = {OSSL_PARAM_uint(OSSL_CIPHER_PARAM_MODE, nullptr),
                                     OSSL_PARAM_int(OSSL_CIPHER_PARAM_AEAD, nullptr),
                                     OSSL_PARAM_int(OSSL_CIPHER_PARAM_CUSTOM_IV, nullptr),
                                     OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, nullptr),
                                     OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, nullptr),
                                     OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_BLOCK_SIZE, nullptr),
                                     OSSL_PARAM_END};
  return names;
}

const OSSL_PARAM* names_of_context_params(void*, void*) {
  static const OSSL_PARAM names[] = {OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, nullptr),
                                     OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, nullptr),
                                     OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_TAGLEN, nullptr),
                                     OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, nullptr, 0),
                                     OSSL_PARAM_END};
  return names;
}

template <class Function>
OSSL_DISPATCH entry(int id, Function* function) {
  return {id, reinterpret_cast<void (*)()>(function)};
}

const OSSL_ALGORITHM* algorithms(void*, int operation, int* no_cache) {
  static const OSSL_DISPATCH cipher[] = {entry(OSSL_FUNC_CIPHER_NEWCTX, make),
                                         entry(OSSL_FUNC_CIPHER_DUPCTX, copy),
                                         entry(OSSL_FUNC_CIPHER_FREECTX, destroy),
                                         entry(OSSL_FUNC_CIPHER_ENCRYPT_INIT, init_encrypt),
                                         entry(OSSL_FUNC_CIPHER_DECRYPT_INIT, init_decrypt),
                                         entry(OSSL_FUNC_CIPHER_UPDATE, update),
                                         entry(OSSL_FUNC_CIPHER_FINAL, finish),
                                         entry(OSSL_FUNC_CIPHER_GET_PARAMS, get_params),
                                         entry(OSSL_FUNC_CIPHER_GET_CTX_PARAMS, get_context_params),
                                         entry(OSSL_FUNC_CIPHER_SET_CTX_PARAMS, set_params),
                                         entry(OSSL_FUNC_CIPHER_GETTABLE_PARAMS, names_of_params),
                                         entry(OSSL_FUNC_CIPHER_GETTABLE_CTX_PARAMS, names_of_context_params),
                                         entry(OSSL_FUNC_CIPHER_SETTABLE_CTX_PARAMS, names_of_context_params),
                                         {0, nullptr}};
  static const OSSL_ALGORITHM ciphers[] = {
      {"AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6", "provider=tidemark", cipher, "AES-128-GCM, wide vectors"},
      {nullptr, nullptr, nullptr, nullptr}};
  *no_cache = 0;
  return operation == OSSL_OP_CIPHER ? ciphers : nullptr;
}

int start_provider(const OSSL_CORE_HANDLE* handle, const OSSL_DISPATCH*, const OSSL_DISPATCH** out, void** context) {
  static const OSSL_DISPATCH provider[] = {entry(OSSL_FUNC_PROVIDER_QUERY_OPERATION, algorithms), {0, nullptr}};
  *out = provider;
  *context = const_cast<OSSL_CORE_HANDLE*>(handle);   // it must be some pointer; nothing is kept
  return 1;
}

// Both are kept until the process ends: ciphers of theirs may be in use until then.
struct Providers { OSSL_PROVIDER* defaults = nullptr; OSSL_PROVIDER* own = nullptr; } providers;

// The default provider first: it serves whoever asks for no properties, such as curl.
bool register_provider() {
  providers.defaults = OSSL_PROVIDER_load(nullptr, "default");
  if (OSSL_PROVIDER_add_builtin(nullptr, "tidemark", start_provider) == 1)
    providers.own = OSSL_PROVIDER_load(nullptr, "tidemark");
  const bool done = providers.defaults != nullptr && providers.own != nullptr;
  if (!done) kLog.warning("wide_cipher_unavailable", {{"used", "OpenSSL's own"}});
  return done;
}

}  // namespace

const char* tls_properties() {
  static const char* const properties = functions() != nullptr && register_provider() ? "?provider=tidemark" : "";
  return properties;
}

}  // namespace tidemark::net
