"""Texts that a platform writes in place of what a person sent: left-out media, deleted messages, calls.

They are compared with a whole message, without case, brackets and invisible marks, so a message that only mentions one is kept.
The WhatsApp texts are those of its exports in the languages of its app; see https://faq.whatsapp.com/1180414079177245.
"""

from __future__ import annotations

import re

_MARKS = re.compile("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_TEXTS = frozenset(
    {
        # English
        "media omitted", "image omitted", "video omitted", "audio omitted", "gif omitted", "sticker omitted",
        "document omitted", "contact card omitted", "video note omitted", "file omitted", "voice message omitted",
        "this message was deleted", "this message was deleted.", "you deleted this message", "you deleted this message.",
        "message deleted", "deleted message", "missed voice call", "missed video call",
        "waiting for this message", "waiting for this message. this may take a while.", "view once message omitted",
        "live location shared", "this message has been deleted", "this message has been deleted.", "this message was removed",
        # German
        "medien ausgeschlossen", "medien weggelassen", "bild weggelassen", "video weggelassen", "audio weggelassen",
        "gif weggelassen", "sticker weggelassen", "dokument weggelassen", "kontaktkarte ausgelassen",
        "diese nachricht wurde gelöscht", "diese nachricht wurde gelöscht.", "du hast diese nachricht gelöscht",
        "du hast diese nachricht gelöscht.", "verpasster sprachanruf", "verpasster videoanruf",
        # French
        "médias omis", "image absente", "vidéo absente", "audio omis", "sticker omis", "document omis", "gif retiré",
        "ce message a été supprimé", "ce message a été supprimé.", "vous avez supprimé ce message",
        "vous avez supprimé ce message.", "appel vocal manqué", "appel vidéo manqué", "fichier multimédia omis",
        # Spanish
        "multimedia omitido", "imagen omitida", "video omitido", "vídeo omitido", "audio omitido", "sticker omitido",
        "documento omitido", "gif omitido", "tarjeta de contacto omitida", "se eliminó este mensaje",
        "se eliminó este mensaje.",
        "eliminaste este mensaje", "eliminaste este mensaje.", "mensaje eliminado", "llamada perdida", "videollamada perdida",
        # Portuguese
        "mídia oculta", "ficheiro não revelado", "imagem ocultada", "áudio ocultado", "figurinha omitida",
        "mensagem apagada", "essa mensagem foi apagada", "esta mensagem foi apagada",
        "você apagou essa mensagem", "apagou esta mensagem", "chamada de voz perdida", "chamada de vídeo perdida",
        # Italian
        "media omessi", "immagine omessa", "video omesso", "audio omesso", "sticker non incluso", "documento omesso",
        "questo messaggio è stato eliminato", "questo messaggio è stato eliminato.", "hai eliminato questo messaggio",
        "chiamata persa", "videochiamata persa",
        # Dutch, Turkish, Russian, Polish, Indonesian, Hindi, Arabic, Hebrew, Japanese, Chinese
        "media weggelaten", "afbeelding weggelaten", "video weggelaten", "dit bericht is verwijderd",
        "dit bericht is verwijderd.", "medya dahil edilmedi", "görüntü dahil edilmedi", "bu mesaj silindi", "bu mesaj silindi.",
        "без медиафайлов", "изображение отсутствует", "данное сообщение удалено", "данное сообщение удалено.",
        "pominięto multimedia", "pominięto grafikę", "ta wiadomość została usunięta", "media tidak disertakan",
        "pesan ini telah dihapus", "मीडिया छोड़ दिया गया", "यह संदेश मिटाया गया", "تم استبعاد الوسائط", "تم حذف هذه الرسالة",
        "المدیا محذوفة", "מדיה לא נכללה", "הודעה זו נמחקה", "メディアは含まれていません", "画像は含まれていません",
        "このメッセージは削除されました", "省略多媒体文件", "媒体文件已省略", "图像已忽略", "此消息已删除", "多媒體檔案略",
        "您已刪除此訊息", "此訊息已刪除",
        # Other platforms
        "[deleted]", "[removed]", "attachment unavailable", "this message is unavailable",
        "this content is no longer available",
    }
)  # fmt: skip
_LONGEST = max(map(len, _TEXTS)) + 10
#: Placeholders that name a file.
_WITH_NAME = re.compile(
    r"(?:<(?:attached|attachment|angehängt|allegato|anexado|adjunto|pièce jointe|bijgevoegd|załącznik|вложение)\s*:[^>]{1,200}>"
    r"|[\w.\- ]{1,200}\.\w{2,5} \((?:file attached|datei angehängt|fichier joint|archivo adjunto|arquivo anexado|file allegato"
    r"|bestand bijgevoegd|файл добавлен)\))",
    re.IGNORECASE,
)


def is_placeholder(text: str) -> bool:
    """Return whether a whole message is what a platform writes in place of it."""
    if len(text) > _LONGEST and text.rstrip()[-1:] not in {">", ")"}:
        return False
    plain = text if text.isascii() else _MARKS.sub("", text)
    plain = plain.strip()
    if plain.casefold().strip("<>").strip() in _TEXTS:
        return True
    return plain[-1:] in {">", ")"} and _WITH_NAME.fullmatch(plain) is not None
