// The messages and the status words that two sides exchange. No I/O, no clocks. The Python side is tr_mmap/protocol.py.
#ifndef TR_MMAP_PROTOCOL_HPP
#define TR_MMAP_PROTOCOL_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "json.hpp"

namespace tr {
namespace detail {

inline constexpr const char* exit_command = "exit";  // the controller's wish that the worker end
inline constexpr std::uint32_t max_message_seq = 99'999'999;  // 8 digits; then from 1 again
inline constexpr std::size_t max_message_nbytes = 16 << 20;   // more than this is data, and goes in a tensor

/// Says where a tensor is: the tag that both sides know it by ("" for a result), its segment's file name, and the
/// number that the segment's header must bear.
struct TensorRef {
    std::string tag;
    std::string segment;
    std::uint64_t seq = 0;
};

struct Request {
    std::uint32_t seq = 0;
    std::string command;
    std::string parameters;
    std::int64_t timestamp = 0;      // milliseconds since 1970
    std::vector<TensorRef> tensors;  // tags that the worker does not know yet
    std::vector<std::string> drops;  // tags that are gone
};

struct Failure {
    std::string kind;  // "unknown_command", "bad_input", "handler"
    std::string type;
    std::string message;
    std::string traceback;
};

struct Response {
    std::uint64_t seq = 0;
    std::string command;
    std::string result;
    std::string message;
    std::int64_t timestamp = 0;
    std::vector<TensorRef> tensors;
    std::optional<Failure> error;
};

/// The request's members after ``seq``, which has a place of its own: ``,"command":…}``.
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
        response.error = std::move(failure);
    }
    return response;
}

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

inline std::string_view strip(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

/// A command and its parameters.
struct Command {
    std::string command;
    std::string parameters;
};

/// As Python's str() writes it, since a Python worker reads it.
inline std::string word_of(const json::Value& value) {
    if (const auto* text = value.get<std::string>()) return *text;
    if (const auto* truth = value.get<bool>()) return *truth ? "True" : "False";
    if (const auto* number = value.get<std::int64_t>()) return std::to_string(*number);
    if (const auto* number = value.get<std::uint64_t>()) return std::to_string(*number);
    if (const auto* number = value.get<double>()) {
        for (int precision = 1; precision <= 17; ++precision) {  // the shortest that reads back the same
            char text[40];
            std::snprintf(text, sizeof text, "%.*g", precision, *number);
            if (std::strtod(text, nullptr) == *number) {
                const std::string word = text;
                return word.find_first_of(".en") == std::string::npos ? word + ".0" : word;
            }
        }
    }
    throw BadMessage("'parameters' (or 'params') is a text, or a list of words and numbers", "parameters");
}

inline const json::Value* pick(const json::Value& fields, const char* longer, const char* shorter) {
    const json::Value* a = fields.find(longer);
    const json::Value* b = fields.find(shorter);
    if (a && b && (a->is_null() != b->is_null() || (!a->is_null() && word_of(*a) != word_of(*b)))) {
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
    Command result{std::string(strip(*name)), ""};
    const json::Value* parameters = pick(fields, "parameters", "params");
    if (!parameters || parameters->is_null()) return result;
    if (const auto* words = parameters->get<json::Array>()) {
        for (std::size_t i = 0; i < words->size(); ++i) result.parameters += (i ? " " : "") + word_of((*words)[i]);
    } else {
        result.parameters = word_of(*parameters);
    }
    return result;
}

/// What the worker is doing; the words in status.txt.
enum class Status { STARTING, READY, BUSY, OK, ERROR, EXIT, EXITING, TERMINATED };

inline bool is_waiting(Status status) {
    return status == Status::READY || status == Status::OK || status == Status::ERROR;
}

/// Read a status text: a known word, then perhaps a colon and a remark.
///
/// @throws BadMessage the word is none of the protocol's.
inline Status parse_status(std::string_view text) {
    std::string word;
    for (const char c : strip(text.substr(0, text.find(':')))) word += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    constexpr std::pair<const char*, Status> words[] = {
        {"starting", Status::STARTING}, {"ready", Status::READY}, {"busy", Status::BUSY},
        {"running", Status::BUSY},      {"ok", Status::OK},       {"done", Status::OK},
        {"error", Status::ERROR},       {"exit", Status::EXIT},   {"exiting", Status::EXITING},
        {"terminated", Status::TERMINATED}};
    for (const auto& [name, status] : words) {
        if (word == name) return status;
    }
    throw BadMessage("'" + std::string(text.substr(0, 80)) + "' is no status", std::string(text.substr(0, 80)));
}

}  // namespace detail
}  // namespace tr

#endif  // TR_MMAP_PROTOCOL_HPP
