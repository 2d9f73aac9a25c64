// Tensors in files: save_tsr, load_tsr, read_header. Files are replaced whole and read through mappings, never copied.
#ifndef TR_MMAP_TSR_HPP
#define TR_MMAP_TSR_HPP

#include "macros_off.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clock.hpp"
#include "header.hpp"
#include "header_write.hpp"
#include "layout.hpp"
#include "system.hpp"
#include "tensor.hpp"

namespace tr {
namespace detail {

/// A file's payload, mapped read-only.
class FileStorage final : public Storage {
public:
    FileStorage(Mapping mapping, std::uint64_t offset) : mapping_(std::move(mapping)), offset_(offset) {}
    std::byte* data() override { return mapping_.data() + offset_; }
    bool is_writable() const noexcept override { return false; }

private:
    Mapping mapping_;
    std::uint64_t offset_;
};

/// A live segment was caught while its owner changed it.
struct InMotion {
    TSRFormatError fault;
};

inline Header header_of(const Fd& fd, const std::string& path) {
    const std::string raw = read_all(fd, MAX_HEADER_NBYTES, 0, path);
    try {
        return decode_header(raw.data(), raw.size(), file_nbytes(fd, path), path);
    } catch (const TSRFormatError& error) {
        // What a reader may see of a live segment that its owner is just publishing.
        const bool is_transient = error.fault == Fault::UNPUBLISHED || error.fault == Fault::TORN ||
                                  error.fault == Fault::HEADER_CHECKSUM;
        if (!is_transient) throw;
        const bool is_segment = static_cast<unsigned char>(raw[wire::flags_offset]) & wire::flag_segment;
        if (is_segment) throw InMotion{error};
        throw;
    }
}

/// Try again while a live segment's owner changes it (filling 64 MiB takes 15 ms); then throw the last fault.
template <class Action>
auto until_settled(Action action) {
    for (const double pause_s : {0.0, 0.001, 0.004, 0.016, 0.064}) {
        try {
            return action();
        } catch (const InMotion&) {
            sleep_s(pause_s);
        }
    }
    try {
        return action();
    } catch (const InMotion& last) {
        throw last.fault;
    }
}

inline Tensor view_file(const Fd& fd, const Header& header, const std::string& path, bool is_to_be_verified) {
    if (header.payload_nbytes == 0) {
        if (is_to_be_verified && header.payload_checksum.value_or(0) != 0) {
            throw TSRFormatError(path + ": the checksum of no bytes is 0, the header has another",
                                 Fault::PAYLOAD_CHECKSUM, path);
        }
        return Tensor(header.shape, header.dtype, nullptr);
    }
    Mapping mapping;
    try {
        mapping = map_read(fd, header.file_nbytes());
    } catch (const SystemLimit&) {
        throw;  // of this process, and no fault of the file
    } catch (const SystemError& error) {
        if (error.code != ENOMEM) throw;
        const std::string nbytes = std::to_string(header.file_nbytes());
        throw TSRFormatError(path + ": " + nbytes + " bytes, more than this process can map", Fault::TOO_LARGE, path);
    }
    const std::byte* payload = mapping.data() + header.payload_offset;
    const auto nbytes = static_cast<std::size_t>(header.payload_nbytes);
    if (is_to_be_verified && header.payload_checksum && crc32(payload, nbytes) != *header.payload_checksum) {
        throw TSRFormatError(
            path + ": the payload's checksum is not the header's: the data has changed since it was saved",
            Fault::PAYLOAD_CHECKSUM, path);
    }
    if (header.payload_offset % itemsize(header.dtype) != 0) {  // v0 puts payloads at byte 28
        Tensor copy = Tensor::empty(header.shape, header.dtype);
        std::memcpy(copy.data_ptr(), payload, nbytes);
        return copy;
    }
    return Tensor(header.shape, header.dtype, std::make_shared<FileStorage>(std::move(mapping), header.payload_offset));
}

inline Tensor load_once(const std::string& path, bool is_to_be_verified) {
    {
        const Fd fd = open_path(path);
        const Header header = header_of(fd, path);
        if (!header.is_segment) return view_file(fd, header, path, is_to_be_verified);
    }
    const Fd fd = open_path(path, true);
    const Header header = header_of(fd, path);  // the name may lead to another file by now
    if (header.is_segment) {
        // We store the guest mark, then read the header; the owner clears seq, then reads the mark. One sees the other.
        const Mapping head = map_write(fd, wire::v2_header_nbytes);
        store_word(words_of(head.data()) + wire::guest_word, 1);
        full_fence();
        if (header_of(fd, path) != header) {
            throw InMotion{TSRFormatError(path + ": replaced again and again while it was opened", Fault::TORN, path)};
        }
    }
    return view_file(fd, header, path, is_to_be_verified);
}

/// The path that a rename must replace so that ``path`` has new content: symlinks are followed, so that they survive.
inline std::string replacement_of(std::string path) {
    std::array<char, 4096> link;
    for (int hops = 0; hops < 40; ++hops) {
        const ssize_t length = ::readlink(path.c_str(), link.data(), link.size());
        if (length < 0) break;
        const std::string target(link.data(), static_cast<std::size_t>(length));
        path = !target.empty() && target[0] == '/' ? target : directory_of(path) + "/" + target;
    }
    return path;
}

}  // namespace detail

/// Write a tensor to a file, atomically: readers see the old file or the new one, and old views stay whole.
///
/// @param path a symlink is followed; an existing file's permissions are kept.
/// @param version layout: 2; or 1 or 0 for older readers (dtype codes 1 to 8, at most four dimensions).
/// @param has_checksum store the payload's CRC-32; version 2 only.
/// @throws TSRFormatError UNREPRESENTABLE in that layout; BAD_VERSION.
/// @throws OutOfSpace the file system is full.
/// @throws HostilePath ``path`` is a directory, FIFO or device.
inline void save_tsr(const std::string& path, const Tensor& tensor, int version = 2, bool has_checksum = false) {
    Header header;
    header.version = version;
    header.dtype = tensor.dtype();
    header.shape = tensor.shape();
    header.created_ns = detail::now_ns();
    const void* payload = tensor.data_ptr();
    if (has_checksum) header.payload_checksum = version == 2 ? crc32(payload, tensor.nbytes()) : 0;
    const std::vector<std::byte> raw = encode_header(header);  // refuses before a file exists
    const std::string target = detail::replacement_of(path);
    struct stat info;
    const bool is_there = ::stat(target.c_str(), &info) == 0;
    if (is_there && !S_ISREG(info.st_mode)) detail::refuse_path(path, "is not a regular file", detail::tensor_rule);
    const std::string directory = detail::directory_of(target);
    const std::string temporary = detail::temporary_beside(target);
    const detail::Fd fd = detail::create_file(temporary, is_there ? 0600 : 0666);
    detail::Unlinker unlinker(temporary);
    if (is_there && ::fchmod(fd.get(), info.st_mode & 0777) != 0) throw SystemError(temporary, errno);
    detail::write_all(fd, payload, tensor.nbytes(), raw.size(), directory);
    detail::write_all(fd, raw.data(), raw.size(), 0, directory);
    detail::rename_file(temporary, target);
    unlinker.keep();
}
inline void save_tsr(const Tensor& tensor, const std::string& path, int version = 2, bool has_checksum = false) {
    save_tsr(path, tensor, version, has_checksum);
}

/// A read-only tensor that lives in the file's pages; the cost does not depend on its size.
///
/// Do not truncate a file that is loaded (touching the lost pages is SIGBUS); replacing it, as save_tsr does, is safe.
/// A live segment of a session is marked as visited, so that its owner never reuses it; that needs write permission.
///
/// @param path any layout; a symlink is followed.
/// @param is_to_be_verified compare the payload with its CRC-32, if the file has one. Reads all of it.
/// @throws TSRFormatError any defect of the file; ``fault`` says which one.
/// @throws HostilePath not a regular file.
inline Tensor load_tsr(const std::string& path, bool is_to_be_verified = false) {
    return detail::until_settled([&] { return detail::load_once(path, is_to_be_verified); });
}

/// The checked header of a file of any layout; the payload is not touched.
inline Header read_header(const std::string& path) {
    return detail::until_settled([&] { return detail::header_of(detail::open_path(path), path); });
}

}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_TSR_HPP
