// image create, list, info, resize, import, export, remove: through the mounted directory.

#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "shared/cli/commands.h"
#include "shared/cli/output.h"
#include "shared/image/convert.h"
#include "shared/image/posix_file.h"

namespace tidemark::cli {
namespace {

namespace fs = std::filesystem;

Result<image::OutputFormat> output_format(const std::string& word, const std::string& name) {
  if (word.empty()) return image::format_for_name(name);
  auto format = image::parse_output_format(word);
  if (!format) return Status(Code::kInvalidArgument, "bad format \"" + word + "\": write raw, fixed or dynamic");
  return *format;
}

Result<image::InputFormat> input_format(const std::string& word) {
  auto format = image::parse_input_format(word);
  if (!format) return Status(Code::kInvalidArgument, "bad format \"" + word + "\": write auto, raw or vpc");
  return *format;
}

// What was just written in `format`: a guest's data may look like a footer.
Result<image::ImageFileInfo> written_info(const std::string& path, image::OutputFormat format) {
  return image::image_file_info(
      path, format == image::OutputFormat::kRaw ? image::InputFormat::kRaw : image::InputFormat::kVpc);
}

// A file that is about to be made: its name is free, or may be replaced, and its directory is there.
Status check_new_file(const std::string& path, bool overwrite, const std::string& remedy) {
  TM_RETURN_IF_ERROR(image::check_replaceable(path));
  struct stat s {};
  if (!overwrite && lstat(path.c_str(), &s) == 0) return {Code::kAlreadyExists, path + " exists already: " + remedy};
  std::string directory = fs::path(path).parent_path().string();
  if (directory.empty() || stat(directory.c_str(), &s) == 0) return {};
  return Status::from_errno(errno, "directory " + directory).code() == Code::kNotFound
             ? Status(Code::kNotFound, "directory " + directory + " does not exist: make it with mkdir first")
             : Status::from_errno(errno, "directory " + directory);
}

// The mounted path for a new image.
Result<std::string> new_image_path(Context& context, const std::string& name, bool overwrite,
                                   const std::string& remedy) {
  TM_ASSIGN_OR_RETURN(ImageName image, name_image(context, name));
  if (image.uuid) return Status(Code::kInvalidArgument, name + " is a UUID: give a new image a path in the mount");
  TM_ASSIGN_OR_RETURN(std::string mount, context.live_mount());
  std::string path = mount + "/" + image.path;
  TM_RETURN_IF_ERROR(check_new_file(path, overwrite, remedy));
  return path;
}

// The format's name when a file begins as a disk image that only QEMU reads: as a raw disk it would hold no guest's
// data, and nobody would be told.
std::string foreign_format(const std::string& file) {
  static constexpr std::pair<std::string_view, const char*> kMagic[] = {
      {"QFI\xfb", "qcow2"}, {"KDMV", "vmdk"}, {"# Disk DescriptorFile", "vmdk"}, {"vhdxfile", "vhdx"}, {"QED", "qed"}};
  std::error_code unknown;
  if (std::filesystem::is_fifo(file, unknown)) return "";   // it would be waited for
  std::ifstream in(file, std::ios::binary);
  char begin[32] = {};
  in.read(begin, sizeof begin);
  std::string_view read(begin, static_cast<size_t>(in.gcount()));
  for (const auto& [magic, name] : kMagic) {
    if (read.substr(0, magic.size()) == magic) return name;
  }
  return "";
}

Json info_json(const std::string& path, const image::ImageFileInfo& info) {
  Json j{{"path", path},
         {"format", image::format_name(info.format)},
         {"virtual_size", info.virtual_size},
         {"file_size", info.file_size},
         {"allocated", info.allocated},
         {"valid", info.validity.is_ok()}};
  if (!info.validity) j["problem"] = info.validity.message();
  if (std::string uuid = image_attribute(path, "user.tidemark.uuid"); !uuid.empty()) j["uuid"] = uuid;
  if (info.vhd) {
    const auto& footer = info.vhd->footer;
    j["vhd"] = {{"unique_id", footer.unique_id.to_string()},
                {"creator", std::string(footer.creator_app.data(), footer.creator_app.size())},
                {"geometry", {footer.geometry.cylinders, footer.geometry.heads, footer.geometry.sectors}},
                {"current_size", footer.current_size},
                {"original_size", footer.original_size},
                {"footer_copy_used", info.vhd->footer_copy_used}};
    if (info.vhd->block_bytes != 0) {
      j["vhd"]["block_bytes"] = info.vhd->block_bytes;
      j["vhd"]["blocks"] = info.vhd->blocks;
      j["vhd"]["blocks_allocated"] = info.vhd->blocks_allocated;
    }
  }
  return j;
}

std::string info_text(const Json& j) {
  auto sized = [&](const char* key) { return config::format_size(number(j, key)) + " (" + text(j, key) + " bytes)"; };
  std::string out = "image         " + printable(text(j, "path")) + "\n";
  if (!text(j, "uuid").empty()) out += "uuid          " + text(j, "uuid") + "\n";
  out += "format        " + text(j, "format") + "\n";
  out += "disk size     " + sized("virtual_size") + "\nfile size     " + sized("file_size") + "\nallocated     " +
         sized("allocated") + "\n";
  const Json& vhd = at(j, "vhd");
  if (vhd.is_object()) {
    const Json& g = at(vhd, "geometry");
    out += "vhd id        " + text(vhd, "unique_id") + "\nvhd creator   " + printable(text(vhd, "creator")) +
           "\ngeometry      " + g[0].dump() + " cylinders, " + g[1].dump() + " heads, " + g[2].dump() + " sectors\n";
    if (number(vhd, "blocks") > 0) {
      out += "blocks        " + text(vhd, "blocks_allocated") + " of " + text(vhd, "blocks") + " allocated, " +
             config::format_size(number(vhd, "block_bytes")) + " each\n";
    }
  }
  if (!flag(j, "valid")) out += "PROBLEM       " + printable(text(j, "problem")) + "\n";
  return out;
}

image::Progress progress_of(ProgressBar& bar) {
  return [&bar](uint64_t done, uint64_t total) {
    bar.update(done, total);
    return true;
  };
}

}  // namespace

std::string image_attribute(const std::string& path, const char* name) {
  char value[256];
  ssize_t n = getxattr(path.c_str(), name, value, sizeof value);
  return n > 0 ? std::string(value, static_cast<size_t>(n)) : "";
}

Outcome image_create(Context& context, const CreateOptions& o) {
  TM_ASSIGN_OR_RETURN(uint64_t size, config::parse_size(o.size));
  TM_ASSIGN_OR_RETURN(std::string path,
                      new_image_path(context, o.name, false, "choose another name, or remove it first"));
  image::WriteOptions options;
  TM_ASSIGN_OR_RETURN(options.format, output_format(o.format, path));
  TM_RETURN_IF_ERROR(image::create_image_file(path, size, options));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo info, written_info(path, options.format));
  Json j = info_json(path, info);
  context.result(j, "created " + printable(path) + ", " + std::string(image::format_name(info.format)) + ", " +
                        config::format_size(info.virtual_size));
  return 0;
}

Result<Json> mounted_images(const std::string& mount) {
  Json images = Json::array();
  std::error_code error;
  fs::recursive_directory_iterator walk(mount, error), end;
  for (; !error && walk != end; walk.increment(error)) {
    struct stat s {};
    std::string path = walk->path().string();
    if (lstat(path.c_str(), &s) != 0 || !S_ISREG(s.st_mode)) continue;   // gone meanwhile, or only a name
    images.push_back({{"path", path.substr(mount.size() + 1)},
                      {"uuid", image_attribute(path, "user.tidemark.uuid")},
                      {"size", static_cast<uint64_t>(s.st_size)},
                      {"allocated", static_cast<uint64_t>(s.st_blocks) * 512},
                      {"mirror", image_attribute(path, "user.tidemark.mirror")}});
  }
  if (error) return Status::from_errno(error.value(), mount);
  std::sort(images.begin(), images.end(), [](const Json& a, const Json& b) { return text(a, "path") < text(b, "path"); });
  return images;
}

Outcome image_list(Context& context) {
  TM_ASSIGN_OR_RETURN(std::string mount, context.live_mount());
  TM_ASSIGN_OR_RETURN(Json images, mounted_images(mount));
  Table table({"IMAGE", "SIZE", "ALLOCATED", "MIRROR", "UUID"});
  table.right({1, 2});
  for (const Json& i : images) {
    table.row({text(i, "path"), config::format_size(number(i, "size")), config::format_size(number(i, "allocated")),
               text(i, "mirror"), text(i, "uuid")});
  }
  context.result(Json{{"images", images}}, table.empty() ? "no images" : table.text());
  return 0;
}

Outcome image_info(Context& context, const InfoOptions& o) {
  TM_ASSIGN_OR_RETURN(image::InputFormat format, input_format(o.input_format));
  // Any image file may be looked at: one that lies here comes before one of the mount.
  std::string path = o.image;
  struct stat s {};
  if (Uuid::parse(o.image) || stat(o.image.c_str(), &s) != 0) {
    auto mounted = image_path(context, o.image);
    if (!mounted) return mounted.status();
    path = *mounted;
    if (stat(path.c_str(), &s) != 0) return Status::from_errno(errno, path);
  }
  if (!S_ISREG(s.st_mode)) return Status(Code::kInvalidArgument, path + " is not a regular file: name an image");
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo info, image::image_file_info(path, format));
  Json j = info_json(path, info);
  context.result(j, info_text(j));
  return info.validity ? 0 : 1;
}

Outcome image_resize(Context& context, const ResizeOptions& o) {
  TM_ASSIGN_OR_RETURN(uint64_t size, config::parse_size(o.size));
  TM_ASSIGN_OR_RETURN(image::InputFormat format, input_format(o.input_format));
  TM_ASSIGN_OR_RETURN(std::string path, image_path(context, o.image));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo before, image::image_file_info(path, format));
  TM_RETURN_IF_ERROR(before.validity);   // its size is worth nothing otherwise
  if (size < before.virtual_size && !o.shrink) {
    return Status(Code::kInvalidArgument, path + " is " + config::format_size(before.virtual_size) +
                                              ": what lies beyond " + config::format_size(size) +
                                              " would be lost: give --shrink if that is meant");
  }
  TM_RETURN_IF_ERROR(image::resize_image_file(path, size, format));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo after, image::image_file_info(path, format));
  context.result(info_json(path, after), printable(path) + ": " + config::format_size(before.virtual_size) + " to " +
                                             config::format_size(after.virtual_size));
  return 0;
}

Outcome image_import(Context& context, const ImportOptions& o) {
  TM_ASSIGN_OR_RETURN(image::InputFormat input, input_format(o.input_format));
  std::string name = o.name.empty() ? fs::path(o.file).filename().string() : o.name;
  if (std::string foreign = foreign_format(o.file); input == image::InputFormat::kAuto && !foreign.empty()) {
    return Status(Code::kInvalidArgument,
                  o.file + " is a " + foreign + " image: convert it with qemu-img convert -O raw " + o.file +
                      " MOUNT/NAME (or give --input-format raw to take it byte for byte)");
  }
  TM_ASSIGN_OR_RETURN(std::string path,
                      new_image_path(context, name, o.force, "name another, or give --force to replace it"));
  image::WriteOptions options;
  TM_ASSIGN_OR_RETURN(options.format, output_format(o.format, path));
  TM_ASSIGN_OR_RETURN(auto source, image::open_image_file(o.file, input));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo given, image::image_file_info(o.file, input));
  TM_RETURN_IF_ERROR(given.validity);
  ProgressBar bar("import " + fs::path(path).filename().string(), context.progress_wanted());
  options.overwrite = o.force;
  options.progress = progress_of(bar);
  TM_RETURN_IF_ERROR(image::write_image_file(*source, path, options));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo info, written_info(path, options.format));
  context.result(info_json(path, info), "imported " + printable(o.file) + " as " + printable(path) + ", " +
                                            config::format_size(info.virtual_size));
  return 0;
}

Outcome image_export(Context& context, const ExportOptions& o) {
  TM_ASSIGN_OR_RETURN(image::InputFormat input, input_format(o.input_format));
  TM_ASSIGN_OR_RETURN(std::string path, image_path(context, o.image));
  image::WriteOptions options;
  TM_ASSIGN_OR_RETURN(options.format, output_format(o.format, o.output));
  TM_RETURN_IF_ERROR(check_new_file(o.output, o.force, "name another, or give --force to replace it"));
  TM_ASSIGN_OR_RETURN(auto source, image::open_image_file(path, input));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo given, image::image_file_info(path, input));
  if (!given.validity) context.note(given.validity.message() + "; it is taken for a raw disk");
  ProgressBar bar("export " + fs::path(path).filename().string(), context.progress_wanted());
  options.overwrite = o.force;
  options.progress = progress_of(bar);
  TM_RETURN_IF_ERROR(image::write_image_file(*source, o.output, options));
  TM_ASSIGN_OR_RETURN(image::ImageFileInfo info, written_info(o.output, options.format));
  context.result(info_json(o.output, info), "exported " + printable(path) + " to " + printable(o.output) + ", " +
                                                std::string(image::format_name(info.format)) + ", " +
                                                config::format_size(info.virtual_size));
  return 0;
}

Kept kept_by_replica(const Json& status, const std::string& uuid) {
  Kept out;
  if (text(at(status, "replica"), "url").empty()) {
    out.text = "no replica is configured: nothing keeps it";
    out.json = {{"by", nullptr}};
    return out;
  }
  out.by_replica = true;
  const Json& journal = at(status, "journal");
  static const Json kUnknown;
  const Json* image = &kUnknown;
  for (const Json& i : at(status, "images"))
    if (!uuid.empty() && text(i, "uuid") == uuid) image = &i;
  std::string behind;
  auto say = [&](const std::string& why) { behind += (behind.empty() ? "" : ", ") + why; };
  if (flag(journal, "shipping_paused")) say("shipping is PAUSED");
  if (text(journal, "shipping") == "degraded") {
    say("the replica is outdated since " + text(journal, "degraded_since") + " (" + text(journal, "degraded_why") + ")");
  } else if (text(journal, "shipping") == "resyncing" || number(journal, "resync_left_bytes") != 0) {
    say("the replica is being brought level (" + config::format_size(number(journal, "resync_left_bytes")) + " left)");
  }
  if (flag(journal, "needs_full_resync")) say("the replica was replaced");
  if (!text(journal, "ship_error").empty()) say("shipping fails: " + text(journal, "ship_error"));
  for (const Json& w : at(journal, "withheld"))
    if (!uuid.empty() && text(w, "uuid") == uuid) say("the image is not shipped: " + text(w, "why"));
  if (number(*image, "unshipped_bytes") != 0)
    say(config::format_size(number(*image, "unshipped_bytes")) + " of it are not yet shipped");
  const std::string label = text(journal, "newest_durable_label"), writer = text(*image, "writer");
  if (!writer.empty() && writer != text(status, "node")) say(writer + " holds it and ships it: see the status there");
  out.text = "the replica's points keep it under its UUID";
  if (!behind.empty()) {
    const double age = real(journal, "rpo_s");
    out.text += label.empty() ? ", if any other host has shipped it: this one has not shipped anything yet"
                              : ", if it was there then, as of " + label;
    out.text += "; what was written since" + (age > 0 ? ", in the last " + format_seconds(age) + "," : "") +
                " may be in no point: " + behind;
  }
  const uint64_t handles = number(*image, "open_handles");
  if (handles != 0) out.text += "; it is OPEN here: what is written to it from now on is lost once it is closed";
  out.json = {{"by", text(at(status, "replica"), "url")},
              {"behind", behind.empty() ? Json() : Json(behind)},
              {"as_of", label.empty() ? Json() : Json(label)},
              {"open_handles", handles}};
  return out;
}

namespace {

Result<Kept> kept(Context& context, const std::string& uuid, bool force) {
  TM_ASSIGN_OR_RETURN(const NodeConfig* config, context.config());
  if (!config->replica) return kept_by_replica(Json(), uuid);
  auto status = context.control_get("/v1/status");
  if (status) return kept_by_replica(*status, uuid);
  if (!force) return status.status().with_context("what the replica has of it is not known (--force does without)");
  return Kept{true, {{"by", config->replica->url}, {"behind", status.status().message()}},
              "what the replica has of it is not known: " + status.status().message()};
}

}  // namespace

Outcome image_remove(Context& context, const RemoveOptions& o) {
  TM_ASSIGN_OR_RETURN(std::string path, image_path(context, o.image));
  struct stat s {};
  if (lstat(path.c_str(), &s) != 0) return Status::from_errno(errno, path);
  if (S_ISDIR(s.st_mode)) return Status(Code::kInvalidArgument, path + " is a directory: name an image");
  const bool is_image = S_ISREG(s.st_mode);   // else a link or the like: a name, with nothing behind it to be lost
  const std::string uuid = is_image ? image_attribute(path, "user.tidemark.uuid") : "";
  Json j{{"path", path}, {"uuid", uuid}, {"size", static_cast<uint64_t>(s.st_size)}, {"removed", !o.dry_run}};
  std::string what = printable(path) + " (" + config::format_size(static_cast<uint64_t>(s.st_size)) +
                     (uuid.empty() ? "" : ", " + uuid) + ")";
  std::string left = "it was no image, but a name alone";
  if (is_image) {
    // Asked before it is gone: the host forgets it.
    TM_ASSIGN_OR_RETURN(Kept kept_of_it, kept(context, uuid, o.force));
    left = kept_of_it.text;
    j["kept"] = kept_of_it.json;
    if (!kept_of_it.by_replica && !o.dry_run && !o.force)
      return Status(Code::kInvalidArgument, path + ": " + left + ": give --force to remove it for good");
  }
  if (o.dry_run) {
    context.result(j, "would remove " + what + " from every copy; " + printable(left));
    return 0;
  }
  if (unlink(path.c_str()) != 0) return Status::from_errno(errno, path);
  context.result(j, "removed " + what + "; " + printable(left));
  return 0;
}

}  // namespace tidemark::cli
