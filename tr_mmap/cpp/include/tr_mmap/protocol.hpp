// Messages and the status, to and from text. No I/O, no clocks. Python's counterpart is tr_mmap/protocol.
#ifndef TR_MMAP_PROTOCOL_HPP
#define TR_MMAP_PROTOCOL_HPP

#include "macros_off.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "json.hpp"
#include "numbers.hpp"
#include "text.hpp"
#include "wire.hpp"

namespace tr {
namespace detail {

/// Says where a tensor is.
struct TensorRef {
    std::string tag;        // the name that both sides know it by; "" for a result
    std::string segment;    // file name of its segment
    std::uint64_t seq = 0;  // the number that the segment's header must bear
};

struct Request {
    std::uint32_t seq = 0;
    std::string command;
    std::string parameters;
    std::int64_t timestamp = 0;      // milliseconds since 1970
    std::vector<TensorRef> tensors;  // tags that the worker does not know yet
    std::vector<std::string> drops;  // tags that no longer exist
    std::string form;                // wire::form_named if the parameters are arguments by name; "" for words
};

struct Failure {
    std::string kind;  // one of wire::failure_…
    std::string type;
    std::string message;
    std::string traceback;
    std::optional<std::uint64_t> needed_nbytes;  // if the worker lacked room for a tensor
    std::optional<std::uint64_t> free_nbytes;
};

struct Response {
    std::uint64_t seq = 0;
    std::string command;
    std::string result;
    std::string message;
    std::int64_t timestamp = 0;
    std::vector<TensorRef> tensors;
    std::optional<Failure> error;
    std::string form;  // wire::form_named if the result holds values by name; "" for a text
};

/// The request's members after ``seq``, which has a fixed place in a slot of a ring: ``,"command":…}``.
inline std::string encode_rest(const Request& request) {
    std::string out = ",\"command\":";
    json::append_string(out, request.command);
    if (!request.parameters.empty()) {
        out += ",\"parameters\":";
        json::append_string(out, request.parameters);
    }
    out += ",\"timestamp\":" + std::to_string(request.timestamp);
    if (!request.tensors.empty()) {
        out += ",\"tensors\":[";
        for (const TensorRef& ref : request.tensors) {
            out += out.back() == '[' ? "[" : ",[";
            json::append_string(out, ref.tag);
            out += ',';
            json::append_string(out, ref.segment);
            out += ',' + std::to_string(ref.seq) + ']';
        }
        out += ']';
    }
    if (!request.drops.empty()) {
        out += ",\"drops\":[";
        for (const std::string& tag : request.drops) {
            if (out.back() != '[') out += ',';
            json::append_string(out, tag);
        }
        out += ']';
    }
    if (!request.form.empty()) {
        out += ",\"form\":";
        json::append_string(out, request.form);
    }
    return out + '}';
}

[[noreturn]] inline void bad_response(const std::string& what) {
    throw BadMessage("the response cannot be read: " + what, what);
}

inline void read_member(const json::Value& from, const char* key, std::string& into) {
    const json::Value* member = from.find(key);
    if (!member) return;
    const auto* text = member->get<std::string>();
    if (!text) bad_response(std::string("\"") + key + "\" is no text");
    into = *text;
}

inline std::uint64_t to_unsigned(const json::Value& value, const char* key) {
    if (const auto* big = value.get<std::uint64_t>()) return *big;
    const auto* number = value.get<std::int64_t>();
    if (!number || *number < 0) bad_response(std::string("\"") + key + "\" is no number");
    return static_cast<std::uint64_t>(*number);
}

inline TensorRef to_tensor_ref(const json::Value& value) {
    const auto* parts = value.get<json::Array>();
    if (!parts || parts->size() < 3 || !(*parts)[0].is<std::string>() || !(*parts)[1].is<std::string>()) {
        bad_response("a tensor is [tag, segment, seq]");
    }
    return {*(*parts)[0].get<std::string>(), *(*parts)[1].get<std::string>(), to_unsigned((*parts)[2], "seq")};
}

/// Parse a response; unknown members are ignored.
///
/// @throws BadMessage it is not one.
inline Response decode_response(std::string_view raw) {
    const json::Value value = json::parse(raw);
    if (!value.is<json::Object>()) bad_response("it is no object");
    Response response;
    if (const auto* seq = value.find("seq")) response.seq = to_unsigned(*seq, "seq");
    read_member(value, "command", response.command);
    read_member(value, "result", response.result);
    read_member(value, "message", response.message);
    read_member(value, "form", response.form);
    if (const auto* tensors = value.find("tensors")) {
        const auto* refs = tensors->get<json::Array>();
        if (!refs) bad_response("\"tensors\" is no list");
        for (const json::Value& each : *refs) response.tensors.push_back(to_tensor_ref(each));
    }
    const json::Value* error = value.find("error");
    if (error && !error->is_null()) {
        Failure failure;
        if (!error->is<json::Object>()) bad_response("\"error\" is no object");
        read_member(*error, "kind", failure.kind);
        read_member(*error, "type", failure.type);
        read_member(*error, "message", failure.message);
        read_member(*error, "traceback", failure.traceback);
        const json::Value* needed = error->find("needed_nbytes");
        if (needed && !needed->is_null()) failure.needed_nbytes = to_unsigned(*needed, "needed_nbytes");
        const json::Value* free = error->find("free_nbytes");
        if (free && !free->is_null()) failure.free_nbytes = to_unsigned(*free, "free_nbytes");
        response.error = std::move(failure);
    }
    return response;
}

/// A command and its parameters.
struct Command {
    std::string command;
    std::string parameters;
    std::string form = {};  // as in a request
};

/// A parameter as Python's str() writes it, since a Python worker reads it.
inline std::string word_of(const json::Value& value) {
    if (const auto* text = value.get<std::string>()) return *text;
    if (const auto* truth = value.get<bool>()) return *truth ? "True" : "False";
    if (const auto* number = value.get<std::int64_t>()) return std::to_string(*number);
    if (const auto* number = value.get<std::uint64_t>()) return std::to_string(*number);
    if (const auto* number = value.get<double>()) return real_word(*number);
    throw BadMessage("'parameters' (or 'params') is a text, or a list of words and numbers", "parameters");
}

/// Whether the worker reads a text as one word.
inline bool is_one_word(std::string_view text) {
    // Beyond ASCII, what Python splits words at.
    for (const std::string_view space : {"\xc2\x85", "\xc2\xa0", "\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
                                         "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"}) {
        if (text.find(space) != text.npos) return false;
    }
    for (std::size_t at = 0; (at = text.find("\xe2\x80", at)) != text.npos && at + 2 < text.size(); ++at) {
        const auto last = static_cast<unsigned char>(text[at + 2]);
        if (last >= 0x80 && last <= 0x8a) return false;
    }
    const auto splits = [](char c) { return c == ',' || is_space(c) || (c >= '\x1c' && c <= '\x1f'); };
    return !text.empty() && std::none_of(text.begin(), text.end(), splits);
}

/// A parameter as in word_of(), or a list of them, which are joined.
inline std::string words_of(const json::Value& value) {
    const auto* list = value.get<json::Array>();
    if (!list) return word_of(value);
    std::string words;
    for (const json::Value& each : *list) {
        const std::string word = word_of(each);
        if (!is_one_word(word)) {
            throw BadMessage("'" + word.substr(0, 80) + "' in the list 'parameters' (or 'params') is not one word: it is "
                             "empty, or has a space or a comma; give 'parameters' as one text",
                             "parameters");
        }
        words += (words.empty() ? "" : " ") + word;
    }
    return words;
}

/// The member of either name, null if there is none.
inline const json::Value* pick(const json::Value& fields, const char* longer, const char* shorter) {
    const json::Value* a = fields.find(longer);
    const json::Value* b = fields.find(shorter);
    const auto differ = [](const json::Value& x, const json::Value& y) {
        return x.data.index() != y.data.index() || (!x.is_null() && words_of(x) != words_of(y));
    };
    if (a && b && differ(*a, *b)) {
        throw BadMessage(std::string("'") + longer + "' and '" + shorter + "' are both given and differ; give one",
                         longer);
    }
    return a ? a : b;
}

/// Split what the user wrote into command and parameters: ``matmul a b``, or ``{"cmd": "matmul", "params": "a,b"}``.
///
/// @throws BadMessage there is no command in it.
inline Command parse_command(std::string_view message) {
    message = strip(message);
    if (message.empty()) throw BadMessage("the message is empty; it begins with a command", "");
    if (message[0] != '{') {
        std::size_t end = 0;
        while (end < message.size() && !is_space(message[end])) ++end;
        return {std::string(message.substr(0, end)), std::string(strip(message.substr(end)))};
    }
    const json::Value fields = json::parse(message);
    const json::Value* command = pick(fields, "command", "cmd");
    const std::string* name = command ? command->get<std::string>() : nullptr;
    if (!name || strip(*name).empty()) {
        throw BadMessage("a JSON message needs a text under 'command' (or 'cmd')", "command");
    }
    const json::Value* parameters = pick(fields, "parameters", "params");
    const bool has_parameters = parameters && !parameters->is_null();
    return {std::string(strip(*name)), has_parameters ? words_of(*parameters) : ""};
}

/// What the worker is doing: the word in the status file.
enum class Status { STARTING, READY, BUSY, OK, ERROR, EXIT, EXITING, TERMINATED };

inline bool is_waiting(Status status) {
    return status == Status::READY || status == Status::OK || status == Status::ERROR;
}

/// Read a status text: a known word, then perhaps a colon and a remark.
///
/// @throws BadMessage the word is none of the protocol's.
inline Status parse_status(std::string_view text) {
    std::string word;
    for (const char c : strip(text.substr(0, text.find(':')))) {
        word += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
    constexpr std::pair<const char*, Status> words[] = {
        {wire::status_starting, Status::STARTING}, {wire::status_ready, Status::READY},
        {wire::status_busy, Status::BUSY},         {wire::status_ok, Status::OK},
        {wire::status_error, Status::ERROR},       {wire::status_exit, Status::EXIT},
        {wire::status_exiting, Status::EXITING},   {wire::status_terminated, Status::TERMINATED},
        {wire::status_running, Status::BUSY},      {wire::status_done, Status::OK}};
    std::string known;
    for (const auto& [name, status] : words) {
        if (word == name) return status;
        known += (known.empty() ? "" : ", ") + std::string(name);
    }
    const std::string shown(text.substr(0, 80));
    throw BadMessage("'" + shown + "' is no status; known are " + known, shown);
}

}  // namespace detail
}  // namespace tr

#include "macros_on.hpp"

#endif  // TR_MMAP_PROTOCOL_HPP
